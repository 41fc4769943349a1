"""Text encoders of `transformers` as frozen backbones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pidep.backbones.checkpoint import (
    backbone_digest,
    check_bare,
    check_finite,
    check_vocabulary,
    is_read,
    load_model,
    load_tokenizer,
    position_limit,
    require_place,
    weights_digest,
)
from pidep.backbones.device import on_device
from pidep.backbones.embedding import EmbeddingBackbone
from pidep.backbones.layer_cache import LayerCache
from pidep.backbones.pooling import Pooling, pool
from pidep.backbones.sentence_transformers import Declared, read_declared, warn_if_unknown
from pidep.errors import BackboneError
from pidep.inputs.images import Preprocess
from pidep.inputs.row import Input, size_key, texts_only
from pidep.inputs.tokenize import Tokenize

__all__ = ["Encoder", "encode_sorted", "encoder_of", "load_encoder"]

_EXPECTED = "'minilm', a folder or a hub id of a text encoder"


@dataclass(eq=False)
class Encoder(EmbeddingBackbone):
    """A frozen text encoder: `encode(texts)` gives unit rows `[B, D]`."""

    name: str
    model: nn.Module
    pooling: Pooling
    tokenizer_json: str
    digest: str
    declared_length: int | None = None
    """Tokens that the checkpoint cuts texts to; None where only its positions count."""

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
        """Longest text that the checkpoint was made for, in tokens."""
        limit = position_limit(self.model)
        return limit if self.declared_length is None else min(limit, self.declared_length)

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
        inputs = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
        return on_device(inputs, self.model)

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

    Runs without gradients; the result is on the host.
    """
    # The results go back to their places below, so the caller does not see the order.
    order = sorted(range(len(rows)), key=lambda row: size_key(rows[row]))
    out = torch.empty(len(rows), width)
    with torch.inference_mode():
        for start in range(0, len(order), batch_size):
            some = order[start : start + batch_size]
            out[some] = embed(some).cpu()
    return out


def load_encoder(source: str | Path, *, name: str | None = None) -> Encoder:
    """Load and freeze a text encoder from a folder or a hub id.

    Its pooling, and where it cuts texts, are those that the files of sentence-transformers
    declare.

    Args:
        name: the encoder's name; `source` when absent.

    Raises:
        BackboneError: nothing loadable is there, weights or tokenizer are missing, it is no text
            encoder, or it makes its embeddings in a way that pidep cannot.
    """
    from transformers import AutoModel

    name = name or str(source)
    require_place(source, name=name)
    declared = read_declared(source, name=name)
    place: dict[str, Any] = {"name": name, "expected": _EXPECTED, "subfolder": declared.subfolder}
    model, tokenizer = load_model(AutoModel, source, **place), load_tokenizer(source, **place)
    warn_if_unknown(source)
    return encoder_of(model, tokenizer, name=name, declared=declared)


def encoder_of(
    model: Any,
    tokenizer: Any,
    *,
    name: str | None = None,
    pooling: Pooling = "mean",
    declared: Declared | None = None,
) -> Encoder:
    """A text encoder from a model and a tokenizer of `transformers` that are loaded already.

    The model is frozen in place and put into evaluation mode.

    Args:
        name: what experts call the backbone. The default is made of the class and the digest.
        pooling: how the tokens of a text become one vector.
        declared: what the checkpoint says about its embeddings, in place of `pooling`.

    Raises:
        BackboneError: it is no text encoder in float32 with a fast tokenizer that fits it.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    found = type(model).__name__
    if backend is None or getattr(model.config, "is_encoder_decoder", False):
        raise BackboneError(
            f"backbone {name or found!r}: expected a text encoder with a fast tokenizer, "
            f"found {found}"
        )
    if any(parameter.dtype != torch.float32 for parameter in model.parameters()):
        raise BackboneError(
            f"backbone {name or found!r}: expected weights in float32; load it with "
            "dtype=torch.float32"
        )
    check_bare(model, name=name or found)
    check_vocabulary(model, tokenizer, name=name or found)
    check_finite(model, name=name or found)
    model.requires_grad_(False).eval()
    declared = declared or Declared(pooling)
    # sentence-transformers 6 keeps the length in the tokenizer's config, as transformers does.
    declared = replace(declared, max_length=declared.max_length or _length_of(tokenizer))
    tokens = _tokenizer_json(backend, lower_case=declared.lower_case)
    return _encoder(model, tokens, declared, name=name)


def _encoder(model: Any, tokenizer_json: str, declared: Declared, *, name: str | None) -> Encoder:
    """The encoder with its digest and, where nobody named it, its name."""
    weights = weights_digest(model, only=is_read)
    encoder = Encoder(
        name="",
        model=model,
        pooling=declared.pooling,
        tokenizer_json=tokenizer_json,
        digest="",
        declared_length=declared.max_length,
    )
    facts = (f"pooling {declared.pooling}", f"positions {encoder.max_positions}")
    digest = backbone_digest(weights, model.config, tokenizer_json, *facts)
    name = name or f"{type(model).__name__}-{digest.removeprefix('sha256:')[:12]}"
    return replace(encoder, name=name, digest=digest)


def _length_of(tokenizer: Any) -> int | None:
    """Tokens that a tokenizer's config cuts texts to."""
    found = getattr(tokenizer, "model_max_length", None)
    return found if isinstance(found, int) and found > 0 else None


def _tokenizer_json(backend: Any, *, lower_case: bool) -> str:
    """The tokenizer, with lowercasing as its first step where the checkpoint asks for it."""
    if not lower_case or backend.encode("A").ids == backend.encode("a").ids:
        return str(backend.to_str())
    from tokenizers import Tokenizer, normalizers

    changed = Tokenizer.from_str(backend.to_str())
    own = [] if changed.normalizer is None else [changed.normalizer]
    changed.normalizer = normalizers.Sequence([normalizers.Lowercase(), *own])
    return str(changed.to_str())
