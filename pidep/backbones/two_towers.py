"""Two towers in one space: CLIP and SigLIP as frozen backbones.

The text tower embeds the words of a row, the image tower its image. A row with both has the mean of
the two unit vectors, scaled to length 1. Label texts are embedded by the text tower.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NoReturn

import numpy as np
import torch
from torch import Tensor, nn

from pidep.adapters.places import device_of
from pidep.backbones.checkpoint import position_limit
from pidep.backbones.device import on_device
from pidep.backbones.embedding import EmbeddingBackbone
from pidep.backbones.encoder import encode_sorted
from pidep.backbones.tower import Tower
from pidep.errors import BackboneError
from pidep.inputs.images import Preprocess
from pidep.inputs.row import Input, Row, as_row, places_of
from pidep.inputs.tokenize import Tokenize

__all__ = ["TwoTowers"]

_LARGEST_SCALE = 100.0
"""CLIP was trained with its logit scale clipped at 100."""


@dataclass(eq=False)
class TwoTowers(EmbeddingBackbone):
    """A frozen pair of encoders: `encode(rows)` gives unit rows `[B, D]`."""

    name: str
    model: Any
    """`CLIPModel` or `SiglipModel` of transformers. Experts are attached to both towers of it."""
    tokenizer_json: str
    preprocess: Preprocess
    digest: str
    padded_length: int | None = None
    """Tokens that every text is padded to, where padding is read as a part of the text (SigLIP)."""

    image_graph: ClassVar[nn.Module | None] = None  # experts act in the image tower, too

    def __post_init__(self) -> None:
        self.tokenize = Tokenize(self.tokenizer_json, padded_length=self.padded_length)

    @property
    def compatible_digests(self) -> tuple[str, ...]:
        """Only experts made for these very towers."""
        return (self.digest,)

    @property
    def hidden_size(self) -> int:
        """D, the width of the space that both towers share."""
        config = self.model.config
        return int(getattr(config, "projection_dim", 0) or config.text_config.projection_size)

    @property
    def max_positions(self) -> int:
        """Longest text, in tokens."""
        return position_limit(self.model.text_model)

    @property
    def logit_scale(self) -> float:  # type: ignore[override]
        """The factor that the towers were trained with; their cosines lie close together."""
        return min(float(self.model.logit_scale.exp()), _LARGEST_SCALE)

    @property
    def towers(self) -> tuple[Tower, ...]:  # type: ignore[override]
        """The text tower and the image tower."""
        return (
            Tower(
                "text",
                ("text_model.", "text_projection"),
                ("input_ids", "attention_mask"),
                self.text_vectors,
                self.padded_length,
            ),
            Tower("image", ("vision_model.", "visual_projection"), ("pixels",), self.image_vectors),
        )

    def text_vectors(
        self,
        input_ids: Tensor,  # [N, T] int64
        attention_mask: Tensor,  # [N, T] int64
    ) -> Tensor:  # [N, D] fp32, unit rows
        """Embed tokens, with the expert that is attached to `model`."""
        found = self.model.get_text_features(input_ids=input_ids, attention_mask=attention_mask)
        return nn.functional.normalize(found.pooler_output.float(), dim=-1)

    def image_vectors(
        self,
        pixels: Tensor,  # [N, 3, S, S] fp32, normalised
    ) -> Tensor:  # [N, D] fp32, unit rows
        """Embed images, with the expert that is attached to `model`."""
        found = self.model.get_image_features(pixel_values=pixels)
        return nn.functional.normalize(found.pooler_output.float(), dim=-1)

    @property
    def forward(self) -> NoReturn:
        """Raises `BackboneError`: the two towers are two graphs."""
        raise BackboneError(
            f"backbone {self.name!r}: has two towers and no single graph; export its `towers`"
        )

    def prepare(self, rows: Sequence[Input], *, max_length: int) -> dict[str, Tensor]:
        """`input_ids` and `attention_mask` `[N, T]` int64 of the rows with a text, `pixels`
        `[M, 3, S, S]` fp32 of those with an image, and their places in `text_rows` and
        `image_rows`.
        """
        whole = [as_row(row) for row in rows]
        texts, images = _places(whole)
        found = {"text_rows": torch.tensor(texts), "image_rows": torch.tensor(images)}
        if texts:
            ids, mask = self.tokenize([whole[at].text for at in texts], max_length=max_length)
            found |= {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
        if images:
            pixels = [self._pixels(whole[at], at) for at in images]
            found["pixels"] = torch.from_numpy(np.stack(pixels))
        return on_device(found, self.model)

    def _pixels(self, row: Row, at: int) -> Any:
        assert row.image is not None
        return self.preprocess.one(row.image, where=row.where or f"row {at + 1}")

    def embed(self, rows: Sequence[Input], *, max_length: int) -> Tensor:
        """Rows to `[B, D]` with gradients to the attached experts.

        Raises:
            BackboneError: a row holds nothing.
            ImageError: an image cannot be read; the message names the row.
        """
        inputs = self.prepare(rows, max_length=max_length)
        sums = torch.zeros(len(rows), self.hidden_size, device=device_of(self.model))
        if "input_ids" in inputs:
            vectors = self.text_vectors(inputs["input_ids"], inputs["attention_mask"])
            sums = sums.index_add(0, inputs["text_rows"], vectors)
        if "pixels" in inputs:
            vectors = self.image_vectors(inputs["pixels"])
            sums = sums.index_add(0, inputs["image_rows"], vectors)
        return nn.functional.normalize(sums, dim=-1)

    def encode(self, rows: Sequence[Input], *, max_length: int, batch_size: int = 64) -> Tensor:
        """Rows to `[N, D]` without gradients, sorted by length so that little is padding."""

        def embed(some: list[int]) -> Tensor:
            return self.embed(_named(rows, some), max_length=max_length)

        return encode_sorted(rows, self.hidden_size, embed, batch_size=batch_size)

    def around(self, model: Any) -> TwoTowers:
        """The same backbone with another pair of towers."""
        return replace(self, model=model)

    @contextmanager
    def cached_below(self, sites: Sequence[str]) -> Iterator[None]:
        """Nothing is cached: the sites of an expert lie in two stacks of layers."""
        yield


def _places(rows: Sequence[Row]) -> tuple[list[int], list[int]]:
    """Places of the rows with a text, and of those with an image.

    Raises:
        BackboneError: a row has neither.
    """
    texts, images = places_of(rows)
    for at in sorted({*range(len(rows))} - {*texts, *images}):
        raise BackboneError(
            f"{rows[at].where or f'row {at + 1}'}: expected a text, an image or both, found "
            "neither; remove the row"
        )
    return texts, images


def _named(rows: Sequence[Input], some: Sequence[int]) -> list[Row]:
    """These rows, each with its own number for messages."""
    chosen = [(at, as_row(rows[at])) for at in some]
    return [row if row.where else replace(row, where=f"row {at + 1}") for at, row in chosen]
