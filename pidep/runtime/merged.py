"""A merged model: one expert folded into its graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pidep.artifacts.merged import MergedRecord
from pidep.artifacts.names import (
    ENGINE,
    GRAPH,
    GRAPH_EMBEDDING,
    GRAPH_LOGITS,
    LABEL_VECTORS,
    TOKENIZER,
)
from pidep.errors import ExpertError, PidepError, ServingError
from pidep.files.tensor_file import read_tensors
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
from pidep.runtime.towers import TowerName, TowerReader, open_towers

__all__ = ["Merged"]


class Merged:
    """Runs batches of one expert."""

    def __init__(
        self,
        version_folder: Path,
        *,
        threads: int | None = None,
        use_engine: bool = True,
        session: Any = None,
    ) -> None:
        """Open a merged model's version folder.

        Args:
            use_engine: False runs the graph of an entry that has a TensorRT engine.
            session: runs the graph of an entry that has none itself: `run` gets the names of
                outputs and the inputs.

        Raises:
            ServingError: a file is missing, malformed or not the recorded one.
        """
        self.record = MergedRecord.read(version_folder)
        require_files(version_folder, self.record)
        tokenizer_digest = (self.record.files or {}).get(TOKENIZER)
        graph, towers = version_folder / GRAPH, self.record.towers
        self._sequences: Sequences | None = None
        self._run_tokens: int | None = None
        self.session: Any = None
        self.reader: InputReader | TowerReader
        if towers is not None:
            self.reader = TowerReader(version_folder, towers, tokenizer_digest=tokenizer_digest)
            digest = self.record.graph_digest
            self._sessions = open_towers(version_folder, towers, digest, threads=threads)
            self._label_vectors = _label_vectors(version_folder, self.record)
            return
        self.reader = InputReader(
            version_folder, self.record.vision, tokenizer_digest=tokenizer_digest, threads=threads
        )
        if self.record.sequence is not None:
            self._sequences = Sequences(
                version_folder, self.record.sequence, self.reader, threads=threads
            )
            return
        if session is not None:
            self.session = session
        elif use_engine and self.record.engine is not None:
            self.session = EngineSession(version_folder / ENGINE, self.record.engine)
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
            own = [self._answering()] * len(rows)
            return self._sequences.answers(rows, visuals, own, lambda _: {})
        logits = self._logits(rows, visuals)
        # Weights that overflow are reported by `finite`, not by warnings of numpy.
        with np.errstate(all="ignore"):
            scores = softmax(logits)
        return [
            finite(Answer(self.record.labels, *row, self.digest))
            for row in zip(logits, scores, strict=True)
        ]

    def _answering(self) -> Answering:
        """What an encoder-decoder needs of the expert."""
        record = self.record
        return Answering(
            record.digest,
            record.max_length,
            record.labels,
            record.label_texts or (),
            record.max_answer_length,
            record.label_bias or (),
        )

    def _logits(self, rows: Sequence[Row], visuals: Sequence[Array | None]) -> Array:
        """The logits `[B, C]` of rows without errors."""
        most = self.record.max_length

        def embed(tower: TowerName, feeds: Mapping[str, Array], _: Sequence[int]) -> Array:
            (vectors,) = self._sessions[tower].run([GRAPH_EMBEDDING], dict(feeds))
            found: Array = vectors
            return found

        logits: Array
        if isinstance(self.reader, TowerReader):
            lengths = [most] * len(rows)
            unit = self.reader.embeddings(rows, visuals, max_length=lengths, embed=embed)
            labels, bias = self._label_vectors
            logits = unit @ labels.T + bias
        else:
            feeds = self.reader.feeds(rows, visuals, max_length=most)
            logits = run_by_length(
                lambda part, _: self.session.run([GRAPH_LOGITS], part)[0],
                feeds,
                run_tokens=self._run_tokens,
            )
        return logits


def _label_vectors(version_folder: Path, record: MergedRecord) -> tuple[Array, Array]:
    """Label embeddings times the logit scale, `[C, D]`, and their bias `[C]`, fp32.

    Raises:
        ServingError: the file is missing, damaged or not of the recorded labels.
    """
    path = version_folder / LABEL_VECTORS
    try:
        tensors = read_tensors(path)
        labels, bias = tensors["labels"], tensors["bias"]
    except (ExpertError, KeyError) as error:
        raise ServingError(f"{path}: no label vectors ({error}); export the model again") from error
    if labels.ndim != 2 or len(labels) != len(record.labels) or bias.shape != (len(labels),):
        raise ServingError(
            f"{path}: has shape {labels.shape}, the model has {len(record.labels)} labels; export "
            "the model again"
        )
    return labels, bias
