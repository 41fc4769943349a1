"""Images to visual tokens through the vision graph, with the preprocessing that training had."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from pidep.artifacts.names import GRAPH_PIXELS, GRAPH_VISUAL, VISION_GRAPH
from pidep.artifacts.vision import VisionRecord
from pidep.errors import PidepError
from pidep.inputs.row import Input
from pidep.runtime.answer import Array
from pidep.runtime.pixels import read_pixels, require_same_preprocess
from pidep.runtime.session import open_session

__all__ = ["VisionReader"]

_KEPT_IMAGES = 256
"""Number of images whose visual tokens are cached. Many experts may read the same image."""


class VisionReader:
    """Stem and connector as one graph, and a cache of its outputs."""

    def __init__(
        self, version_folder: Path, record: VisionRecord, *, threads: int | None = None
    ) -> None:
        """Open the vision graph.

        Raises:
            ServingError: the graph is not the recorded one, or the preprocessing has changed.
        """
        self.record = record
        require_same_preprocess(record.preprocess, record.preprocess_digest, where=version_folder)
        graph = version_folder / VISION_GRAPH
        self.session = open_session(graph, record.graph_digest, threads=threads)
        self._kept: OrderedDict[str, Array] = OrderedDict()

    def tokens(self, rows: Sequence[Input]) -> list[Array | PidepError | None]:
        """Each row's visual tokens `[V, D]`, None without an image, or the error of the row."""
        keys, fresh, wrong = read_pixels(rows, self.record.preprocess, known=self._kept)
        found = {key: self._kept[key] for key in keys if key in self._kept}
        if fresh:
            pixels = np.stack(list(fresh.values()))
            (visual,) = self.session.run([GRAPH_VISUAL], {GRAPH_PIXELS: pixels})
            found.update(zip(fresh, visual, strict=True))
        self._keep(found)
        return [
            wrong[at] if at in wrong else found[key] if key else None for at, key in enumerate(keys)
        ]

    def _keep(self, used: Mapping[str, Array]) -> None:
        """Remember the newest, forget the least recently used."""
        for key, value in used.items():
            self._kept[key] = value
            self._kept.move_to_end(key)
        while len(self._kept) > _KEPT_IMAGES:
            self._kept.popitem(last=False)

    def beside(self, visuals: Sequence[Array | None]) -> dict[str, Array]:
        """`visual` `[B, V, D]` fp32 and `visual_mask` `[B, V]` int64; without images V is 0."""
        # Text-only batches pay nothing for images: the graph's axis V is dynamic.
        places = self.record.num_tokens if any(found is not None for found in visuals) else 0
        tokens = np.zeros((len(visuals), places, self.record.width), np.float32)
        mask = np.zeros((len(visuals), places), np.int64)
        for at, found in enumerate(visuals):
            if found is not None:
                tokens[at], mask[at] = found, 1
        return {"visual": tokens, "visual_mask": mask}
