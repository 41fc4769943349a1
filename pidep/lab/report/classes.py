"""Figures of each label, and the mistakes that a model is most sure of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pidep.inputs.row import Input, as_row
from pidep.tasks.data import Split
from pidep.tasks.metrics.intervals import Interval, f1_interval, wilson

if TYPE_CHECKING:
    from pidep.lab.report.evaluate import Predictions

__all__ = ["MISTAKES", "ClassScore", "Mistake", "Share", "class_scores", "mistakes"]

MISTAKES = 10
"""Number of mistakes that are shown."""
_LONGEST = 300
"""Characters of a text that are shown."""


@dataclass(frozen=True)
class Share:
    """A figure with its 95 % interval."""

    value: float
    interval: Interval


@dataclass(frozen=True)
class ClassScore:
    """One label on the test rows."""

    label: int
    rows: int
    """Rows that have the label."""
    predicted: int
    """Rows that are given the label."""
    precision: Share | None
    """None where no row is given the label."""
    recall: Share | None
    """None where no row has the label."""
    f1: Share


@dataclass(frozen=True)
class Mistake:
    """A test row with a wrong answer."""

    row: int
    """Number of the test row, from 1."""
    text: str
    label: str
    predicted: str
    confidence: float
    """Probability of the predicted label."""


def class_scores(labels: Sequence[int], found: Predictions) -> list[ClassScore]:
    """Precision, recall and F1 of every label."""
    predicted = found.labels.tolist()
    scores = []
    for label in range(len(found.counts)):
        right, rows = int(found.counts[label, label]), int(found.counts[label].sum())
        given = int(found.counts[:, label].sum())
        f1 = 2 * right / (rows + given) if rows + given else 0.0
        scores.append(
            ClassScore(
                label,
                rows,
                given,
                _share(right, given),
                _share(right, rows),
                Share(f1, f1_interval(labels, predicted, label)),
            )
        )
    return scores


def _share(right: int, of: int) -> Share | None:
    return Share(right / of, wilson(right / of, of)) if of else None


def mistakes(test: Split, found: Predictions, names: Sequence[str]) -> list[Mistake]:
    """The wrong answers with the highest probability, the surest first.

    Args:
        names: of the labels; empty where rows have candidates of their own.
    """
    labels = np.asarray(test.labels)
    wrong = np.flatnonzero(found.labels != labels)
    # A stable sort: of equally sure mistakes, the first row comes first.
    surest = wrong[np.argsort(-found.confidence[wrong], kind="stable")][:MISTAKES]
    return [
        Mistake(
            int(row) + 1,
            _shown(test.rows[row]),
            _answer(test.rows[row], int(labels[row]), names),
            _answer(test.rows[row], int(found.labels[row]), names),
            float(found.confidence[row]),
        )
        for row in surest
    ]


def _answer(row: Input, number: int, names: Sequence[str]) -> str:
    if names:
        return names[number]
    candidates = as_row(row).candidates
    return _shown(candidates[number]) if number < len(candidates) else f"candidate {number}"


def _shown(row: Input) -> str:
    """A row on one line: its text, cut, and the name of its image."""
    found = as_row(row)
    text = " ".join(found.text.split())
    text = text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
    if found.image is None:
        return text
    name = Path(found.image).name if isinstance(found.image, str | Path) else "in the data"
    return f"{text} [image {name}]".strip()
