"""What the gate keeps, so that `pidep verify` can ask a live server the same rows."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pidep.artifacts.gate import GateRow, GateSample
from pidep.artifacts.parity import Parity
from pidep.export.source import Source
from pidep.inputs.images import load_image
from pidep.inputs.row import Input, as_row

__all__ = ["MOST_ROWS", "Gated", "gate_sample"]

MOST_ROWS = 64
"""Rows that are kept of each expert."""


@dataclass(frozen=True)
class Gated:
    """An expert that passed the gate."""

    parity: Parity
    sample: GateSample
    worst_text: str
    """The text of the worst row. Rows may be private."""


def gate_sample(
    source: Source,
    reference: npt.NDArray[np.float32],  # [N, C]
    labels: list[int],
) -> GateSample:
    """The first rows of the gate with PyTorch's logits.

    Args:
        labels: the right label of each row.
    """
    rows = [_row(row) for row in source.rows.rows[:MOST_ROWS]]
    widths = [len(row.candidates) or reference.shape[1] for row in rows]
    return GateSample(
        digest=source.served.digest,
        metric=source.metric,
        labels=source.expert.labels,
        logit_scale=source.expert.logit_scale,
        scores_texts=source.expert.scores_texts,
        rows=tuple(rows),
        right=tuple(labels[: len(rows)]),
        logits=tuple(
            tuple(float(one) for one in logits[:width])
            for logits, width in zip(reference, widths, strict=False)
        ),
    )


def _row(row: Input) -> GateRow:
    found = as_row(row)
    image = None
    if found.image is not None:
        stream = io.BytesIO()
        # The pixels that PyTorch has seen; PNG keeps them exactly.
        load_image(found.image, where=found.where or "row").save(stream, format="PNG")
        image = base64.b64encode(stream.getvalue()).decode("ascii")
    return GateRow(
        text=found.text, image=image, candidates=tuple(_row(one) for one in found.candidates)
    )
