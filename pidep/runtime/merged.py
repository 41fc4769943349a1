"""A merged model: one expert folded into its graph."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pidep.artifacts.merged import MergedRecord
from pidep.artifacts.names import ENGINE, GRAPH, GRAPH_LOGITS, TOKENIZER
from pidep.errors import PidepError
from pidep.inputs.row import Input, Row
from pidep.runtime.answer import Answer, Array, finite, softmax
from pidep.runtime.by_length import run_by_length, tokens_of_a_run
from pidep.runtime.engine import EngineSession
from pidep.runtime.entry import require_files
from pidep.runtime.input_reader import InputReader
from pidep.runtime.isolate import isolated
from pidep.runtime.ready_rows import ready_rows
from pidep.runtime.sequences import Answering, Sequences
from pidep.runtime.session import open_session

__all__ = ["Merged"]


class Merged:
    """Runs batches of one expert."""

    def __init__(
        self, version_folder: Path, *, threads: int | None = None, use_engine: bool = True
    ) -> None:
        """Open a merged model's version folder.

        Args:
            use_engine: False runs the graph of an entry that has a TensorRT engine.

        Raises:
            ServingError: a file is missing, malformed or not the recorded one.
        """
        self.record = MergedRecord.read(version_folder)
        require_files(version_folder, self.record)
        self.reader = InputReader(
            version_folder,
            self.record.vision,
            tokenizer_digest=(self.record.files or {}).get(TOKENIZER),
            threads=threads,
        )
        self._sequences: Sequences | None = None
        self.session: Any = None
        if self.record.sequence is not None:
            self._sequences = Sequences(
                version_folder, self.record.sequence, self.reader, threads=threads
            )
            return
        graph = version_folder / GRAPH
        if use_engine and self.record.engine is not None:
            self.session = EngineSession(version_folder / ENGINE, self.record.engine)
            self._run_tokens: int | None = None
        else:
            self.session = open_session(graph, self.record.graph_digest, threads=threads)
            self._run_tokens = tokens_of_a_run(self.session)

    @property
    def digest(self) -> str:
        """The expert's digest."""
        return self.record.digest

    def run(self, rows: Sequence[Input]) -> list[Answer | PidepError]:
        """Answer each row. Whatever is wrong with a row is an error of that row alone."""
        return isolated(lambda part: self._run([rows[at] for at in part]), range(len(rows)))

    def _run(self, rows: Sequence[Input]) -> list[Answer | PidepError]:
        """As `run`. An exception of the graph is raised; it names no row."""
        asked = ready_rows(rows, [self.record.template] * len(rows))
        fit = [row for row in asked if isinstance(row, Row)]
        seen = self.reader.visual(fit)
        good: list[tuple[Row, Array | None]] = [
            (row, visual)
            for row, visual in zip(fit, seen, strict=True)
            if not isinstance(visual, PidepError)
        ]
        # Good rows run as one batch; an error keeps its row's place.
        answers = iter(self._answers(good))
        found = iter(visual if isinstance(visual, PidepError) else next(answers) for visual in seen)
        return [row if isinstance(row, PidepError) else next(found) for row in asked]

    def _answers(self, good: Sequence[tuple[Row, Array | None]]) -> Sequence[Answer | PidepError]:
        if not good:
            return []
        rows, visuals = [row for row, _ in good], [visual for _, visual in good]
        if self._sequences is not None:
            record = self.record
            own = Answering(
                record.digest,
                record.max_length,
                record.labels,
                record.label_texts or (),
                record.max_answer_length,
                record.label_bias or (),
            )
            return self._sequences.answers(rows, visuals, [own] * len(rows), lambda _: {})
        feeds = self.reader.feeds(rows, visuals, max_length=self.record.max_length)
        logits = run_by_length(
            lambda part, _: self.session.run([GRAPH_LOGITS], part)[0],
            feeds,
            run_tokens=self._run_tokens,
        )
        # Weights that overflow are reported by `finite`, not by warnings of numpy.
        with np.errstate(all="ignore"):
            scores = softmax(logits)
        return [
            finite(Answer(self.record.labels, *row, self.digest))
            for row in zip(logits, scores, strict=True)
        ]
