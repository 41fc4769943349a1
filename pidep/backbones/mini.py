"""`pidep-mini`: texts, images, and both at once through one transformer, MiniLM's six layers.

An image passes EfficientNet-Lite0 and the connector and becomes visual tokens that stand beside the words: `[CLS] words [SEP] image`.
Rows without an image are embedded exactly as `Encoder` does. Experts sit on `model`, the transformer that every row passes, whatever
it holds, so the sites and shapes are the same for every task.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pidep.backbones.connector import Connector, read_connector
from pidep.backbones.encoder import MINILM, Encoder, load_backbone, pool, weights_digest
from pidep.backbones.images import ImageSource, Preprocess
from pidep.backbones.stem import EfficientNetLite0, load_stem
from pidep.errors import BackboneError

__all__ = ["MINI", "PREPROCESS", "Batch", "Mini", "Row", "load_mini", "new_connector"]

MINI = "pidep-mini"
PREPROCESS = Preprocess(size=128)
"""How the stem sees an image: 128 × 128, four by four places in its last map."""
_PLACES = 16
_KEPT_IMAGES = 20_000  # 16 tokens of 384 floats each: half a gigabyte


@dataclass(frozen=True, eq=False)
class Row:
    """A text, an image, or both."""

    text: str = ""
    image: ImageSource | None = None


@dataclass(frozen=True, eq=False)
class Batch:
    """What goes into the model: tokens of every row, pixels of the rows that have an image."""

    input_ids: Tensor  # [B, T] int64
    attention_mask: Tensor  # [B, T] int64
    pixels: Tensor  # [N, 3, S, S] fp32
    image_rows: Tensor  # [N] int64, the row of each image, ascending


@dataclass(eq=False)
class Mini:
    """A frozen encoder of rows: `encode(rows) -> [B, D]` unit rows; a `str` is a row with that text alone."""

    name: str
    text: Encoder
    stem: nn.Module
    connector: Connector
    preprocess: Preprocess
    digest: str
    """Over all three parts and the preprocessing."""

    def __post_init__(self) -> None:
        self._kept: OrderedDict[bytes, Tensor] | None = None

    @property
    def model(self) -> Any:
        """The transformer: experts are attached here, at the sites they have on the text backbone."""
        return self.text.model

    @property
    def hidden_size(self) -> int:
        """D, the width of an embedding."""
        return self.text.hidden_size

    @property
    def max_positions(self) -> int:
        """Longest text, in tokens; visual tokens need no position of their own."""
        return self.text.max_positions

    @property
    def tokenizer_json(self) -> str:
        """The text side's tokenizer, as the served model gets it."""
        return self.text.tokenizer_json

    def prepare(self, rows: Sequence[str | Row], *, max_length: int, numbers: Sequence[int] | None = None) -> Batch:
        """Texts to tokens, images to pixels; errors call rows by `numbers`, from 1 when absent.

        Raises:
            ImageError: an image cannot be read; says which row.
            BackboneError: a row holds nothing.
        """
        whole = [row if isinstance(row, Row) else Row(row) for row in rows]
        called = list(numbers) if numbers is not None else list(range(1, len(whole) + 1))
        for number, row in zip(called, whole, strict=True):
            if row.image is None and not row.text.strip():
                raise BackboneError(f"row {number}: expected a text, an image or both, found neither; remove the row")
        ids, mask = self.text.tokenize([row.text for row in whole], max_length=max_length)
        seen = [(number, row.image) for number, row in enumerate(whole) if row.image is not None]
        pixels = np.zeros((len(seen), 3, self.preprocess.size, self.preprocess.size), np.float32)
        for place, (number, image) in enumerate(seen):
            pixels[place] = self.preprocess.one(image, where=f"row {called[number]}")
        image_rows = torch.tensor([number for number, _ in seen], dtype=torch.int64)
        return Batch(torch.from_numpy(ids), torch.from_numpy(mask), torch.from_numpy(pixels), image_rows)

    def forward(self, batch: Batch) -> Tensor:  # [B, D] fp32, unit rows
        """Embed a batch with whatever expert is attached to `model`."""
        if not len(batch.image_rows):
            return self.text.forward(batch.input_ids, batch.attention_mask)
        return self.fused(batch.input_ids, batch.attention_mask, self.visual(batch.pixels), batch.image_rows)

    def fused(
        self,
        input_ids: Tensor,  # [B, T] int64
        attention_mask: Tensor,  # [B, T] int64
        visual: Tensor,  # [N, V, D]
        image_rows: Tensor,  # [N] int64
        *,
        places: Tensor | None = None,  # [V] int64
    ) -> Tensor:  # [B, D] fp32, unit rows
        """Words and visual tokens through the transformer; `places` says which of an image's tokens these are, when not all."""
        words = self.model.get_input_embeddings()(input_ids)
        rows, length, num_places = words.shape[0], words.shape[1], visual.shape[1]
        beside = words.new_zeros(rows, num_places, words.shape[2]).index_copy(0, image_rows, visual.to(words.dtype))
        shown = attention_mask.new_zeros(rows, num_places).index_fill(0, image_rows, 1)
        mask = torch.cat([attention_mask, shown], 1)
        # an image's places are numbered like words from 1, so that a text beside it changes nothing about them
        numbered = torch.arange(num_places) if places is None else places
        positions = torch.cat([torch.arange(length), numbered + 1]).unsqueeze(0)
        hidden = self.model(inputs_embeds=torch.cat([words, beside], 1), attention_mask=mask, position_ids=positions).last_hidden_state
        return pool(hidden, mask, self.text.pooling)

    def visual(self, pixels: Tensor) -> Tensor:
        """`[N, 3, S, S]` to visual tokens `[N, V, D]`; inside `cached_images`, images seen before are not computed again."""
        if self._kept is None:
            return self._visual(pixels)
        keys = [hashlib.sha256(image.numpy().tobytes()).digest() for image in pixels]
        missing = {key: place for place, key in enumerate(keys) if key not in self._kept}
        fresh = dict(zip(missing, self._visual(pixels[list(missing.values())]), strict=True)) if missing else {}
        out = torch.stack([fresh[key] if key in fresh else self._kept[key] for key in keys])
        self._kept.update(fresh)
        while len(self._kept) > _KEPT_IMAGES:
            self._kept.popitem(last=False)
        return out

    def _visual(self, pixels: Tensor) -> Tensor:
        # frozen parts, below every expert: no gradient is wanted here; what is kept must serve training after `encode`, too
        with torch.inference_mode(mode=False), torch.no_grad():
            tokens: Tensor = self.connector(*self.stem(pixels))
        return tokens

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
        """As `Encoder.cached_below`, of which this keeps the images' tokens only: layers below the first site are run again."""
        with self.cached_images():
            yield

    def embed(self, rows: Sequence[str | Row], *, max_length: int, numbers: Sequence[int] | None = None) -> Tensor:
        """Rows to `[B, D]` with gradients to whatever is attached; raises as `prepare`."""
        return self.forward(self.prepare(rows, max_length=max_length, numbers=numbers))

    def encode(self, rows: Sequence[str | Row], *, max_length: int, batch_size: int = 64) -> Tensor:
        """Embed rows `[B, D]` without gradients, alike ones together so that little is padding; raises as `prepare`."""
        order = sorted(range(len(rows)), key=lambda index: _load(rows[index]))
        out = torch.empty(len(rows), self.hidden_size)
        with torch.inference_mode():
            for start in range(0, len(order), batch_size):
                chosen = order[start : start + batch_size]
                out[chosen] = self.embed([rows[row] for row in chosen], max_length=max_length, numbers=[row + 1 for row in chosen])
        return out


def _load(row: str | Row) -> tuple[bool, int]:
    return (False, len(row)) if isinstance(row, str) else (row.image is not None, len(row.text))


def new_connector(width: int) -> Connector:
    """A connector of the shape the mini backbone has, untrained."""
    stem = EfficientNetLite0
    return Connector(channels=stem.channels, channels_middle=stem.channels_middle, width=width, num_tokens=_PLACES)


def load_mini() -> Mini:
    """The packaged MiniLM and EfficientNet-Lite0 with the connector pidep ships, frozen.

    Raises:
        BackboneError: a part is missing, damaged, or not the one the connector was trained with.
    """
    text, stem = load_backbone(MINILM), load_stem()
    parts = {"text": text.digest, "stem": weights_digest(stem), "preprocess": PREPROCESS.digest}
    connector = new_connector(text.hidden_size)
    parts["connector"] = read_connector(connector, expected=parts)
    digest = hashlib.sha256("\n".join(f"{part} {value}" for part, value in sorted(parts.items())).encode()).hexdigest()
    return Mini(MINI, text, stem, connector, PREPROCESS, "sha256:" + digest)
