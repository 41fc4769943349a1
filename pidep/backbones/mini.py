"""`pidep-mini`: texts, images, and both at once through MiniLM's six layers.

An image passes EfficientNet-Lite0 and the connector. It becomes visual tokens beside the words,
`[CLS] words [SEP] image`, and one vector that joins the last states without passing the
transformer. Rows without an image are embedded exactly as `Encoder` does. Experts sit on `model`,
the transformer that every row passes, so that sites and shapes are the same for every task.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pidep.adapters.places import device_of
from pidep.backbones.connector import Connector
from pidep.backbones.embedding import EmbeddingBackbone
from pidep.backbones.encoder import Encoder, encode_sorted
from pidep.backbones.layer_cache import LayerCache
from pidep.backbones.pooling import pool
from pidep.backbones.stem import EfficientNetLite0
from pidep.errors import BackboneError
from pidep.inputs.images import ImageSource, Preprocess
from pidep.inputs.row import Input, as_row, image_key, row_key

__all__ = ["PREPROCESS", "Mini", "new_connector"]

PREPROCESS = Preprocess(size=128)
"""Images for the stem are 128 × 128, which gives four by four places in its last map."""
_PLACES = 16
_PAST_AXES = 256
_KEPT_IMAGES = 20_000  # 16 tokens of 384 floats each: half a gigabyte
_IMAGES_AT_ONCE = 16
"""Images in one pass of the stem, at least; a batch is cut into even parts of this size or more."""


class _ImageGraph(nn.Module):
    """Pixels `[N, 3, S, S]` fp32, normalised, to visual tokens `[N, V, D]` fp32."""

    def __init__(self, stem: nn.Module, connector: Connector) -> None:
        super().__init__()
        self.stem, self.connector = stem, connector

    def forward(self, pixels: Tensor) -> Tensor:
        visual: Tensor = self.connector(*self.stem(pixels))
        return visual


@dataclass(eq=False)
class Mini(EmbeddingBackbone):
    """A frozen encoder of rows: `encode(rows)` gives unit rows `[B, D]`.

    A `str` is a row of text.
    """

    name: str
    text: Encoder
    stem: nn.Module
    connector: Connector
    preprocess: Preprocess
    digest: str
    """SHA-256 over all three parts and the preprocessing."""

    @property
    def image_graph(self) -> nn.Module:
        """Stem and connector in one module."""
        return _ImageGraph(self.stem, self.connector)

    def __post_init__(self) -> None:
        self._kept: OrderedDict[str, Tensor] | None = None
        self._cache: LayerCache | None = None

    @property
    def compatible_digests(self) -> tuple[str, ...]:
        """Its own experts and those of the text encoder, which encodes texts in the same way."""
        return (self.digest, self.text.digest)

    @property
    def model(self) -> Any:
        """The transformer. Its sites are those of the text backbone."""
        return self.text.model

    @property
    def _device(self) -> torch.device:
        return device_of(self.model)

    @property
    def hidden_size(self) -> int:
        """D, the width of an embedding."""
        return self.text.hidden_size

    @property
    def max_positions(self) -> int:
        """Longest text, in tokens. Visual tokens need no positions of their own."""
        return self.text.max_positions

    @property
    def tokenizer_json(self) -> str:
        """The text encoder's tokenizer, as the served model gets it."""
        return self.text.tokenizer_json

    def prepare(
        self, rows: Sequence[Input], *, max_length: int, numbers: Sequence[int] | None = None
    ) -> dict[str, Tensor]:
        """The inputs of `forward`: words, and visual tokens beside them.

        Errors name rows by `numbers`, from 1 on.

        Raises:
            ImageError: an image cannot be read; the message names the row.
            BackboneError: a row holds nothing.
        """
        whole = [as_row(row) for row in rows]
        called = [
            row.where or f"row {number}"
            for row, number in zip(whole, numbers or range(1, len(whole) + 1), strict=True)
        ]
        for where, row in zip(called, whole, strict=True):
            if row.image is None and not row.text.strip():
                raise BackboneError(
                    f"{where}: expected a text, an image or both, found neither; remove the row"
                )
        tokens = self.text.tokenize([row.text for row in whole], max_length=max_length)
        ids, mask = (torch.from_numpy(one).to(self._device) for one in tokens)
        seen = [
            (place, called[place], row.image)
            for place, row in enumerate(whole)
            if row.image is not None
        ]
        if not seen:
            return _inputs(
                # An empty axis, not a missing input: one exported graph serves rows with and
                # without images.
                ids,
                mask,
                torch.zeros(len(ids), 0, self.hidden_size, device=self._device),
                mask.new_zeros(len(ids), 0),
            )
        shown = self._tokens_of([(where, image) for _, where, image in seen])
        places = torch.tensor([place for place, _, _ in seen], device=self._device)
        visual = shown.new_zeros(len(ids), *shown.shape[1:]).index_copy_(0, places, shown)
        return _inputs(
            ids, mask, visual, mask.new_zeros(visual.shape[:2]).index_fill_(0, places, 1)
        )

    def forward(
        self,
        input_ids: Tensor,  # [B, T] int64
        attention_mask: Tensor,  # [B, T] int64
        # [B, V + 1, D], each row's last vector bypasses the transformer; [B, 0, D] without images
        visual: Tensor,
        visual_mask: Tensor,  # [B, V + 1] int64
        *,
        places: Tensor | None = None,  # [V] int64
    ) -> Tensor:  # [B, D] fp32, unit rows
        """Words and visual tokens through the transformer.

        `places` names the places of the visual tokens, when they are not all places.
        """
        shown, past = _parted(visual, visual_mask)
        mask = torch.cat([attention_mask, shown], 1)
        hidden = self.last_states(input_ids, mask, visual, places)
        return pool(hidden, mask, self.text.pooling, past / attention_mask.sum(1, keepdim=True))

    def last_states(
        self, input_ids: Tensor, mask: Tensor, visual: Tensor, places: Tensor | None = None
    ) -> Tensor:
        """Last hidden states `[B, T + V + 1, D]`; nothing attends to the last one."""
        words = self.model.get_input_embeddings()(input_ids)
        # An image's places are numbered from 1 like words, so that a text beside it does not move
        # them.
        numbered = (
            torch.arange(visual.shape[1], device=mask.device)
            if places is None
            else nn.functional.pad(places, (0, 1))
        )
        before = torch.arange(words.shape[1], device=mask.device)
        positions = torch.cat([before, numbered + 1]).unsqueeze(0)
        states: Tensor = self.model(
            inputs_embeds=torch.cat([words, visual.to(words.dtype)], 1),
            attention_mask=mask,
            position_ids=positions,
        ).last_hidden_state
        return states

    def visual(self, pixels: Tensor) -> Tensor:
        """Pixels `[N, 3, S, S]` to visual tokens and the bypassing vector: `[N, V + 1, D]`."""
        # Frozen parts below every expert need no gradient. Plain no_grad: cached tokens must serve
        # training after `encode`, and inference-mode tensors cannot.
        with torch.inference_mode(mode=False), torch.no_grad():
            # The widest feature map takes 1.5 MB per image. glibc maps blocks above 32 MB anew for
            # every layer, and the page faults cost as much CPU time as the convolutions.
            parts = pixels.tensor_split(max(1, len(pixels) // _IMAGES_AT_ONCE))
            maps = zip(*(self.stem(part) for part in parts), strict=True)
            # One pass for all images: the bits of a matrix product depend on its number of rows.
            tokens: Tensor = self.connector(*map(torch.cat, maps))
        return tokens

    def _tokens_of(self, images: Sequence[tuple[str, ImageSource]]) -> Tensor:
        """`visual` of images with their places.

        Inside `cached_images`, known images are not computed again.
        """
        kept = self._kept
        keys = [
            image_key(image) if kept is not None else str(place)
            for place, (_, image) in enumerate(images)
        ]
        missing = {key: place for place, key in enumerate(keys) if kept is None or key not in kept}
        pixels = np.zeros((len(missing), 3, self.preprocess.size, self.preprocess.size), np.float32)
        for at, place in enumerate(missing.values()):
            where, image = images[place]
            pixels[at] = self.preprocess.one(image, where=where)
        found = (
            dict(zip(missing, self.visual(torch.from_numpy(pixels).to(self._device)), strict=True))
            if missing
            else {}
        )
        out = torch.stack(
            [found[key] if kept is None or key in found else kept[key] for key in keys]
        )
        if kept is not None:
            kept.update(found)
            while len(kept) > _KEPT_IMAGES:
                kept.popitem(last=False)
        return out

    def around(self, model: Any) -> Mini:
        """The same backbone with another transformer."""
        return replace(self, text=self.text.around(model))

    @contextmanager
    def cached_images(self) -> Iterator[None]:
        """Inside, every image's visual tokens are computed once; they lie below every expert."""
        before, self._kept = self._kept, OrderedDict()
        try:
            yield
        finally:
            self._kept = before

    @contextmanager
    def cached_below(self, sites: Sequence[str]) -> Iterator[None]:
        """As `Encoder.cached_below`, and as `cached_images`."""
        before, self._cache = self._cache, LayerCache.below(self.model, sites)
        try:
            with self.cached_images():
                yield
        finally:
            self._cache = before

    def embed(
        self, rows: Sequence[Input], *, max_length: int, numbers: Sequence[int] | None = None
    ) -> Tensor:
        """Rows to `[B, D]` with gradients to the attached experts; raises as `prepare`."""
        if self._cache is None:
            return self.forward(**self.prepare(rows, max_length=max_length, numbers=numbers))
        called = numbers or range(1, len(rows) + 1)

        def prepare(missing: list[int]) -> tuple[Tensor, Callable[[], object]]:
            batch = self.prepare(
                [rows[row] for row in missing],
                max_length=max_length,
                numbers=[called[row] for row in missing],
            )
            shown, _ = _parted(batch["visual"], batch["visual_mask"])
            mask = torch.cat([batch["attention_mask"], shown], 1)
            return mask, lambda: self.last_states(batch["input_ids"], mask, batch["visual"])

        hidden, mask = self._cache.last_hidden(
            [(*row_key(row), max_length) for row in rows], prepare
        )
        return pool(hidden, mask, self.text.pooling, self._past(rows, mask.sum(1, keepdim=True)))

    def _past(self, rows: Sequence[Input], counts: Tensor) -> Tensor:  # [B, D]
        """The bypassing vectors of rows with these token counts [B, 1].

        For use with the layer cache.
        """
        seen = [
            (place, row.image)
            for place, row in enumerate(map(as_row, rows))
            if row.image is not None
        ]
        out = torch.zeros(len(rows), self.hidden_size, device=counts.device)
        if seen:
            visual = self._tokens_of([(f"row {place + 1}", image) for place, image in seen])
            _, past = _parted(visual, visual.new_ones(visual.shape[:2], dtype=torch.int64))
            places = [place for place, _ in seen]
            out[places] = past / (counts[places] - visual.shape[1] + 1)
        return out

    def encode(self, rows: Sequence[Input], *, max_length: int, batch_size: int = 64) -> Tensor:
        """Rows to `[N, D]` without gradients, sorted by length so that little is padding."""

        def embed(some: list[int]) -> Tensor:
            return self.embed(
                [rows[row] for row in some],
                max_length=max_length,
                numbers=[row + 1 for row in some],
            )

        return encode_sorted(rows, self.hidden_size, embed, batch_size=batch_size)


def _parted(visual: Tensor, visual_mask: Tensor) -> tuple[Tensor, Tensor]:  # [B, V + 1], [B, D]
    """The transformer's mask, and each row's bypassing vector, counted twice for every token.

    Pooling divides by the number of words, and [CLS] and [SEP] are two of them. An image alone
    therefore has all of the vector; beside a text, the text counts, too.
    """
    # No slices: the axis may be empty in an exported graph.
    last = torch.arange(visual.shape[1], device=visual.device) == visual.shape[1] - 1
    shown = visual_mask * ~last
    past = (visual * (visual_mask * last).unsqueeze(-1)).sum(1)
    return shown, past * (2 * shown.sum(1, keepdim=True))


def _inputs(
    input_ids: Tensor, attention_mask: Tensor, visual: Tensor, visual_mask: Tensor
) -> dict[str, Tensor]:
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "visual": visual,
        "visual_mask": visual_mask,
    }


def new_connector(width: int) -> Connector:
    """An untrained connector of the shape that the mini backbone has."""
    stem = EfficientNetLite0
    return Connector(
        channels=stem.channels,
        channels_middle=stem.channels_middle,
        channels_summary=stem.channels_summary,
        width=width,
        num_tokens=_PLACES,
        axes=_PAST_AXES,
    )
