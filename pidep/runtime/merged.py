"""A merged model: one expert folded into its graph."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pidep.artifacts.merged import MergedRecord
from pidep.artifacts.names import GRAPH, GRAPH_LOGITS
from pidep.errors import PidepError
from pidep.inputs.row import Input
from pidep.runtime.answer import Answer, Array, softmax
from pidep.runtime.input_reader import InputReader
from pidep.runtime.session import open_session

__all__ = ["Merged"]


class Merged:
    """Runs batches of one expert."""

    def __init__(self, version_folder: Path, *, threads: int | None = None) -> None:
        """Open a merged model's version folder.

        Raises:
            ServingError: a file is missing, malformed or not the recorded one.
        """
        self.record = MergedRecord.read(version_folder)
        self.reader = InputReader(version_folder, self.record.vision, threads=threads)
        graph = version_folder / GRAPH
        self.session = open_session(graph, self.record.graph_digest, threads=threads)

    @property
    def digest(self) -> str:
        """The expert's digest."""
        return self.record.digest

    def run(self, rows: Sequence[Input]) -> list[Answer | PidepError]:
        """Answer each row; a damaged image is an error of that row alone."""
        seen = self.reader.visual(rows)
        good: list[tuple[Input, Array | None]] = [
            (row, visual)
            for row, visual in zip(rows, seen, strict=True)
            if not isinstance(visual, PidepError)
        ]
        # Good rows run as one batch; an error keeps its row's place.
        answers = iter(self._answers(good))
        return [visual if isinstance(visual, PidepError) else next(answers) for visual in seen]

    def _answers(self, good: Sequence[tuple[Input, Array | None]]) -> list[Answer]:
        if not good:
            return []
        rows, visuals = [row for row, _ in good], [visual for _, visual in good]
        feeds = self.reader.feeds(rows, visuals, max_length=self.record.max_length)
        (logits,) = self.session.run([GRAPH_LOGITS], feeds)
        return [
            Answer(self.record.labels, row, scores, self.digest)
            for row, scores in zip(logits, softmax(logits), strict=True)
        ]
