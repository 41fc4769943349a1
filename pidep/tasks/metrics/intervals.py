"""95 % intervals of metrics: how far the draw of the test rows alone moves them.

Another seed or other shots move them further.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pidep.tasks.metrics import score_texts

__all__ = ["Interval", "difference", "f1_interval", "interval", "interval_of_texts", "wilson"]

Indices = npt.NDArray[np.int64]
_Z = 1.959964
"""Standard normal quantile of 97.5 %."""
_RESAMPLES = 1000
_GROUPS = 10


@dataclass(frozen=True)
class Interval:
    """A 95 % interval, and how it was computed."""

    low: float
    high: float
    method: str
    """`Wilson`, `bootstrap, 1,000 resamples`, or `jackknife, 10 groups of rows`."""

    def to_json(self) -> list[float | str]:
        """For `metrics.json`."""
        return [round(self.low, 6), round(self.high, 6), self.method]


def wilson(share: float, rows: int) -> Interval:
    """The interval of a share of independent rows (Wilson, 1927).

    >>> found = wilson(0.8, 100)
    >>> round(found.low, 3), round(found.high, 3)
    (0.711, 0.867)
    """
    middle, scale = share + _Z * _Z / (2 * rows), 1 + _Z * _Z / rows
    half = _Z * math.sqrt(share * (1 - share) / rows + (_Z / (2 * rows)) ** 2)
    # Rounding can leave an end a little outside of a share's range.
    return Interval(max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale), "Wilson")


def interval(metric: str, labels: Sequence[int], predictions: Sequence[int]) -> Interval:
    """The interval of `accuracy` (Wilson) or `macro_f1` (bootstrap)."""
    right, made = np.asarray(labels), np.asarray(predictions)
    if metric == "accuracy":
        return wilson(float((right == made).mean()), len(right))
    return _bootstrap(lambda rows: _macro_f1(right[rows], made[rows]), len(right))


def difference(
    metric: str, labels: Sequence[int], one: Sequence[int], other: Sequence[int]
) -> Interval:
    """The interval of the metric of `one` minus that of `other`, on the same rows.

    The rows are resampled for both together: hard rows are hard for both, and that cancels.
    """
    right, first, second = np.asarray(labels), np.asarray(one), np.asarray(other)
    figure = _macro_f1 if metric == "macro_f1" else _accuracy
    return _bootstrap(
        lambda rows: figure(right[rows], first[rows]) - figure(right[rows], second[rows]),
        len(right),
    )


def f1_interval(labels: Sequence[int], predictions: Sequence[int], label: int) -> Interval:
    """The interval of one label's F1."""
    right, made = np.asarray(labels) == label, np.asarray(predictions) == label
    return _bootstrap(lambda rows: _f1(right[rows], made[rows]), len(right))


def interval_of_texts(
    metric: str, references: Sequence[Sequence[str]], predictions: Sequence[str]
) -> Interval | None:
    """The interval of a metric of generated texts; None with fewer than two rows.

    Shares have Wilson's. `vqa_score`, a mean over rows, is bootstrapped. `bleu4` and `cider` are
    computed from all rows together, too slowly for a bootstrap, so they are jackknifed by groups
    of rows. `meteor` and `spice` have none: each pass starts Java, and one can take minutes.
    """
    count = len(predictions)
    if metric in ("accuracy", "acc@0.5"):
        return wilson(score_texts(metric, references, predictions), count)
    if count < 2 or metric in ("meteor", "spice"):
        return None
    if metric == "vqa_score":
        each = np.array(
            [
                score_texts(metric, [row], [text])
                for row, text in zip(references, predictions, strict=True)
            ]
        )
        return _bootstrap(lambda rows: float(each[rows].mean()), count)

    def on(rows: Indices) -> float:
        return score_texts(
            metric, [references[row] for row in rows], [predictions[row] for row in rows]
        )

    return _jackknife(on, count)


def _bootstrap(figure: Callable[[Indices], float], rows: int) -> Interval:
    """The percentile interval of a figure over resampled rows (Efron, 1979)."""
    # A seed of its own: the same predictions always have the same interval.
    random = np.random.default_rng(0)
    # Draw by draw: all at once take 800 MB with 100,000 rows.
    found = [figure(random.integers(0, rows, rows)) for _ in range(_RESAMPLES)]
    low, high = np.percentile(found, [2.5, 97.5])
    return Interval(float(low), float(high), f"bootstrap, {_RESAMPLES:,} resamples")


def _jackknife(figure: Callable[[Indices], float], rows: int) -> Interval:
    """Delete-a-group jackknife: the figure without each group of rows (Shao and Wu, 1989)."""
    order = np.random.default_rng(0).permutation(rows)
    groups = np.array_split(order, min(_GROUPS, rows))
    without = np.array([figure(np.setdiff1d(order, group)) for group in groups])
    count, whole = len(groups), figure(np.arange(rows))
    error = math.sqrt((count - 1) / count * float(((without - without.mean()) ** 2).sum()))
    return Interval(
        max(0.0, whole - _Z * error), whole + _Z * error, f"jackknife, {count} groups of rows"
    )


def _accuracy(labels: Indices, predictions: Indices) -> float:
    return float((labels == predictions).mean())


def _macro_f1(labels: Indices, predictions: Indices) -> float:
    # Counts instead of scikit-learn: a thousand resamples take a second instead of a minute.
    size = int(max(labels.max(), predictions.max())) + 1
    right = np.bincount(labels[labels == predictions], minlength=size)
    both = np.bincount(labels, minlength=size) + np.bincount(predictions, minlength=size)
    # As scikit-learn: a label that is neither given nor predicted does not count.
    return float((2 * right[both > 0] / both[both > 0]).mean())


def _f1(right: npt.NDArray[np.bool_], made: npt.NDArray[np.bool_]) -> float:
    both = int(right.sum()) + int(made.sum())
    return 2 * int((right & made).sum()) / both if both else 0.0
