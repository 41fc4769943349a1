"""Text encoders of `transformers` as frozen backbones."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pidep.backbones.embedding import EmbeddingBackbone
from pidep.backbones.layer_cache import LayerCache
from pidep.errors import BackboneError
from pidep.inputs.images import Preprocess
from pidep.inputs.row import Input, size_key, texts_only
from pidep.inputs.tokenize import Tokenize

__all__ = ["Encoder", "encode_sorted", "encoder_of", "load_encoder", "pool", "weights_digest"]


def weights_digest(model: nn.Module) -> str:
    """SHA-256 over the sorted state dict: names, shapes, dtypes and bytes."""
    sha = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        # Equal weights must give one digest on every device and memory layout.
        value = tensor.detach().cpu().contiguous()
        sha.update(f"{name} {tuple(value.shape)} {value.dtype}\n".encode())
        sha.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return "sha256:" + sha.hexdigest()


@dataclass(eq=False)
class Encoder(EmbeddingBackbone):
    """A frozen text encoder: `encode(texts)` gives unit rows `[B, D]`."""

    name: str
    model: nn.Module
    pooling: str
    """`mean` over the attended tokens, or `cls`."""
    tokenizer_json: str
    digest: str

    preprocess: ClassVar[Preprocess | None] = None
    image_graph: ClassVar[nn.Module | None] = None

    def __post_init__(self) -> None:
        self.tokenize = Tokenize(self.tokenizer_json)
        self._cache: LayerCache | None = None

    @property
    def compatible_digests(self) -> tuple[str, ...]:
        """Only experts made for this very encoder."""
        return (self.digest,)

    @property
    def hidden_size(self) -> int:
        """D, the width of an embedding."""
        return int(self.model.config.hidden_size)  # type: ignore[union-attr,arg-type]

    @property
    def max_positions(self) -> int:
        """Longest text that the model was built for, in tokens."""
        return int(getattr(self.model.config, "max_position_embeddings", 512))

    def forward(
        self,
        input_ids: Tensor,  # [B, T] int64
        attention_mask: Tensor,  # [B, T] int64
    ) -> Tensor:  # [B, D] fp32, unit rows
        """Embed tokens, with the expert that is attached to `model`."""
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return pool(hidden, attention_mask, self.pooling)

    def prepare(self, rows: Sequence[Input], *, max_length: int) -> dict[str, Tensor]:
        """The inputs of `forward`; raises as `embed`."""
        ids, mask = self.tokenize(texts_only(rows, backbone=self.name), max_length=max_length)
        return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}

    def embed(self, rows: Sequence[Input], *, max_length: int) -> Tensor:
        """Texts to `[B, D]` with gradients to the attached experts, through an open layer cache.

        Raises:
            BackboneError: a row has an image.
        """
        texts = texts_only(rows, backbone=self.name)
        if self._cache is None:
            return self.forward(**self.prepare(texts, max_length=max_length))

        def prepare(missing: list[int]) -> tuple[Tensor, Callable[[], object]]:
            tokens = self.prepare([texts[row] for row in missing], max_length=max_length)
            return tokens["attention_mask"], lambda: self.model(**tokens)

        hidden, mask = self._cache.last_hidden([(text, max_length) for text in texts], prepare)
        return pool(hidden, mask, self.pooling)

    def around(self, model: Any) -> Encoder:
        """The same encoder with another model."""
        return replace(self, model=model)

    @contextmanager
    def cached_below(self, sites: Sequence[str]) -> Iterator[None]:
        """Inside, `embed` and `encode` run only the layers from the first site on.

        Nothing may be attached below that layer.
        """
        before, self._cache = self._cache, LayerCache.below(self.model, sites)
        try:
            yield
        finally:
            self._cache = before

    def encode(self, rows: Sequence[Input], *, max_length: int, batch_size: int = 64) -> Tensor:
        """Texts to `[N, D]` without gradients, sorted by length so that little is padding."""
        texts = texts_only(rows, backbone=self.name)
        return encode_sorted(
            texts,
            self.hidden_size,
            lambda some: self.embed([texts[row] for row in some], max_length=max_length),
            batch_size=batch_size,
        )


def encode_sorted(
    rows: Sequence[Input], width: int, embed: Callable[[list[int]], Tensor], *, batch_size: int
) -> Tensor:
    """Call `embed` with row numbers, sorted by length so that little is padding: `[N, width]`.

    Runs without gradients.
    """
    # The results go back to their places below, so the caller does not see the order.
    order = sorted(range(len(rows)), key=lambda row: size_key(rows[row]))
    out = torch.empty(len(rows), width)
    with torch.inference_mode():
        for start in range(0, len(order), batch_size):
            some = order[start : start + batch_size]
            out[some] = embed(some)
    return out


def pool(
    hidden: Tensor, attention_mask: Tensor, pooling: str, beside: Tensor | None = None
) -> Tensor:
    """Hidden states `[B, T, D]` to unit rows `[B, D]`.

    `beside` [B, D] is added to the sum over tokens; it bypassed the model.
    """
    weight = attention_mask.to(hidden.dtype).unsqueeze(-1)
    # A text of no tokens would divide by zero.
    total = weight.sum(1).clamp(min=1.0)
    pooled = hidden[:, 0] if pooling == "cls" else (hidden * weight).sum(1) / total
    return nn.functional.normalize(pooled if beside is None else pooled + beside / total, dim=-1)


def _pooling(folder: Path) -> str:
    config = folder / "1_Pooling" / "config.json"
    if config.is_file() and json.loads(config.read_text()).get("pooling_mode_cls_token"):
        return "cls"
    return "mean"


def load_encoder(source: str | Path, *, name: str | None = None) -> Encoder:
    """Load and freeze a text encoder from a folder or a hub id.

    Args:
        name: the encoder's name; `source` when absent.

    Raises:
        BackboneError: nothing loadable is there, its digest is wrong, or it is no text encoder
            with a fast tokenizer.
    """
    from safetensors import SafetensorError
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    name = name or str(source)
    try:
        # dtype is named: without it, transformers takes the precision that the checkpoint was saved
        # in.
        model: Any = AutoModel.from_pretrained(source, dtype=torch.float32)
        tokenizer: Any = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BackboneError(
            f"backbone {name!r}: expected 'minilm', a folder or a hub id of a text encoder; "
            f"{reason}"
        ) from error
    return encoder_of(model, tokenizer, name=name, pooling=_pooling(Path(source)))


def encoder_of(
    model: Any, tokenizer: Any, *, name: str | None = None, pooling: str = "mean"
) -> Encoder:
    """A text encoder from a model and a tokenizer of `transformers` that are loaded already.

    The model is frozen in place and put into evaluation mode.

    Args:
        name: what experts call the backbone. The default is made of the class and the digest.
        pooling: `mean` over the tokens, or `cls`.

    Raises:
        BackboneError: it is no text encoder in float32 with a fast tokenizer.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    found = type(model).__name__
    if backend is None or getattr(model.config, "is_encoder_decoder", False):
        raise BackboneError(
            f"backbone {name or found!r}: expected a text encoder with a fast tokenizer, "
            f"found {found}"
        )
    # The digest covers the bytes, so other precisions would be other backbones.
    if any(parameter.dtype != torch.float32 for parameter in model.parameters()):
        raise BackboneError(
            f"backbone {name or found!r}: expected weights in float32; load it with "
            "dtype=torch.float32"
        )
    # Evaluation mode: dropout would give a frozen model another answer each time.
    model.requires_grad_(False).eval()
    digest = weights_digest(model)
    name = name or f"{found}-{digest.removeprefix('sha256:')[:12]}"
    return Encoder(
        name=name,
        model=model,
        pooling=pooling,
        tokenizer_json=backend.to_str(),
        digest=digest,
    )
