"""Rows through two towers: each tower embeds its rows, and a row of both has their mean."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from pidep.artifacts.names import GRAPH, GRAPH_PIXELS, IMAGE_GRAPH
from pidep.artifacts.towers import TowersRecord
from pidep.errors import PidepError
from pidep.inputs.row import Row, as_row, places_of
from pidep.inputs.tokenize import Tokenize
from pidep.runtime.answer import Array
from pidep.runtime.entry import tokenizer_json
from pidep.runtime.pixels import read_pixels, require_same_preprocess
from pidep.runtime.session import open_session

__all__ = ["EmbedTower", "TowerName", "TowerReader", "open_towers", "tower_rows"]

TowerName: TypeAlias = Literal["text", "image"]
EmbedTower: TypeAlias = Callable[[TowerName, Mapping[str, Array], Sequence[int]], Array]
"""A tower, its graph's inputs and the places of its rows in the batch, to unit rows `[N, D]`."""

_SMALLEST_NORM = 1e-12
"""As torch.nn.functional.normalize has it: two opposite vectors have no direction between them."""


def tower_rows(text: str) -> list[Row]:
    """The text, an image of noise, and both: every way through two towers."""
    noise = np.random.default_rng(0).integers(0, 256, (48, 48, 3), np.uint8)
    return [Row(text), Row(image=noise), Row(text, noise)]


def open_towers(
    version_folder: Path, record: TowersRecord, text_digest: str, *, threads: int | None = None
) -> dict[TowerName, Any]:
    """The sessions of both towers.

    Raises:
        ServingError: a graph is missing or not the recorded one.
    """
    return {
        "text": open_session(version_folder / GRAPH, text_digest, threads=threads),
        "image": open_session(
            version_folder / IMAGE_GRAPH, record.image_graph_digest, threads=threads
        ),
    }


class TowerReader:
    """Makes the inputs of both graphs, and one embedding of what they give."""

    def __init__(
        self, version_folder: Path, record: TowersRecord, *, tokenizer_digest: str | None = None
    ) -> None:
        """Open the tokenizer.

        Args:
            tokenizer_digest: the recorded one; None in entries that do not record it.

        Raises:
            ServingError: the tokenizer is missing or not the recorded one, or the preprocessing of
                images has changed.
        """
        require_same_preprocess(record.preprocess, record.preprocess_digest, where=version_folder)
        self._preprocess = record.preprocess
        self._tokenize = Tokenize(
            tokenizer_json(version_folder, tokenizer_digest), padded_length=record.padded_length
        )

    def visual(self, rows: Sequence[Row]) -> list[Array | PidepError | None]:
        """Each row's pixels `[3, S, S]`, None without an image, or the error of the image."""
        keys, pixels, wrong = read_pixels(rows, self._preprocess)
        return [
            wrong[at] if at in wrong else pixels[key] if key else None
            for at, key in enumerate(keys)
        ]

    def embeddings(
        self,
        rows: Sequence[Row],
        visuals: Sequence[Array | None],
        *,
        max_length: Sequence[int],
        embed: EmbedTower,
    ) -> Array:
        """The rows' unit vectors `[B, D]` fp32. A tower without rows does not run.

        Args:
            visuals: as `visual` gives them.
            max_length: tokens that each text is cut to.
        """
        whole = [as_row(row) for row in rows]
        texts, images = places_of(whole)
        found: list[tuple[list[int], Array]] = []
        if texts:
            limits = [max_length[at] for at in texts]
            ids, mask = self._tokenize([whole[at].text for at in texts], max_length=limits)
            feeds = {"input_ids": ids, "attention_mask": mask}
            found.append((texts, embed("text", feeds, texts)))
        if images:
            pixels = np.stack([np.asarray(visuals[at]) for at in images])
            found.append((images, embed("image", {GRAPH_PIXELS: pixels}, images)))
        sums = np.zeros((len(rows), found[0][1].shape[1]), np.float32)
        for places, vectors in found:
            sums[places] += vectors
        # Vectors that overflow are reported by `finite`, not by warnings of numpy.
        with np.errstate(all="ignore"):
            norms = np.linalg.norm(sums, axis=1, keepdims=True)
            unit: Array = sums / np.maximum(norms, _SMALLEST_NORM)
        return unit
