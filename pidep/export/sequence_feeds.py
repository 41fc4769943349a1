"""What the two graphs of an encoder-decoder are given while they answer training rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from pidep.artifacts.names import GRAPH_SLOTS, GRAPH_WEIGHTS
from pidep.artifacts.sequence import SequenceRecord
from pidep.artifacts.vision import VisionRecord
from pidep.errors import PidepError
from pidep.experts.bank import pack
from pidep.experts.kind import BankGroup, bank_sites
from pidep.export.sensitivity import Feeds
from pidep.export.source import Source
from pidep.inputs.row import Row, as_row
from pidep.runtime.answer import Array
from pidep.runtime.input_reader import InputReader
from pidep.runtime.sequences import Answering, Sequences

__all__ = ["sequence_feeds"]

_ROWS, _BATCH = 16, 8
"""Rows of each task: a decoder's logits are as wide as its vocabulary, for each label of a row."""


def sequence_feeds(
    version: Path,
    record: SequenceRecord,
    vision: VisionRecord | None,
    sources: Sequence[Source],
    groups: Sequence[BankGroup] = (),
) -> dict[str, Feeds]:
    """Graph's name to its inputs, a run at a time; through the bare backbone, where it is a bank's.

    The graphs in fp32 answer as in serving: they score the labels of a task, or generate.

    Args:
        version: the folder of the graphs, and of the tokenizer.
    """
    reader = InputReader(version, vision)
    sequences = Sequences(version, record, reader)
    bare = _bare(groups)
    with sequences.recorded() as found:
        for source in sources:
            rows = [as_row(row) for row in source.calibration[:_ROWS]]
            for start in range(0, len(rows), _BATCH):
                _answer(sequences, reader, rows[start : start + _BATCH], source, bare)
    return {name: tuple(feeds) for name, feeds in found.items()}


def _answer(
    sequences: Sequences,
    reader: InputReader,
    rows: Sequence[Row],
    source: Source,
    bare: Mapping[str, Any],
) -> None:
    expert = source.expert
    visuals: list[Array | None] = []
    for visual in reader.visual(rows):
        if isinstance(visual, PidepError):
            raise visual
        visuals.append(visual)
    own = Answering(
        expert.digest,
        expert.max_length,
        expert.labels,
        expert.label_texts,
        expert.max_answer_length,
    )
    sequences.answers(rows, visuals, [own] * len(rows), lambda _: bare)


def _bare(groups: Sequence[BankGroup]) -> dict[str, Any]:
    """The inputs of a bank's experts that change nothing; none for a merged model."""
    if not groups:
        return {}
    arrays = {group.input: pack(group, [None]) for group in groups}
    arrays[GRAPH_SLOTS] = np.zeros((1, 1), np.int64)
    arrays[GRAPH_WEIGHTS] = np.zeros((1, 1, len(bank_sites(groups))), np.float32)
    return {
        name: onnxruntime.OrtValue.ortvalue_from_numpy(array, "cpu", 0)
        for name, array in arrays.items()
    }
