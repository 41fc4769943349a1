"""Whether one matrix predicts another, target by target. numpy only.

Rank correlation, regret of the top choice, bootstrap over targets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

__all__ = [
    "TOP",
    "Figure",
    "Matrix",
    "by_target",
    "spearman",
    "statistics",
    "top_overlap",
    "top_regret",
]

Matrix = npt.NDArray[np.float64]
TOP = 3


@dataclass(frozen=True)
class Figure:
    """A statistic and its bootstrap over targets."""

    value: float
    samples: Matrix  # [R]

    @property
    def interval(self) -> tuple[float, float]:
        """The middle 95 %."""
        low, high = np.percentile(self.samples, [2.5, 97.5])
        return float(low), float(high)

    def __sub__(self, other: Figure) -> Figure:
        return Figure(self.value - other.value, self.samples - other.samples)

    def to_json(self) -> dict[str, Any]:
        """Rounded."""
        return {
            "value": round(self.value, 4),
            "interval_95": [round(bound, 4) for bound in self.interval],
        }

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.value:.3f} [{low:.3f}, {high:.3f}]"


def spearman(
    left: Matrix,  # [..., N]
    right: Matrix,  # [..., N]
) -> Matrix:  # [...]
    """Rank correlation; ties share their mean rank. 0 where one side is constant."""
    ranks = [rankdata(side, axis=-1) for side in (left, right)]
    a, b = (side - side.mean(-1, keepdims=True) for side in ranks)
    lengths = np.sqrt((a * a).sum(-1) * (b * b).sum(-1))
    return np.asarray(
        np.where(lengths > 0, (a * b).sum(-1) / np.where(lengths > 0, lengths, 1.0), 0.0)
    )


def top_regret(
    predicted: Matrix,  # [..., N]
    transfer: Matrix,  # [..., N]
) -> Matrix:  # [...]
    """Regret: best transfer minus the transfer of the helper predicted best.

    A tie is a uniform choice, so a constant prediction is a random choice.
    """
    best = predicted == predicted.max(-1, keepdims=True)
    return np.asarray(transfer.max(-1) - (best * transfer).sum(-1) / best.sum(-1))


def top_overlap(
    predicted: Matrix,  # [..., N]
    transfer: Matrix,  # [..., N]
    *,
    top: int = TOP,
) -> Matrix:  # [...]
    """Share of the best `top` helpers that are predicted among the best `top`.

    Ties at the edge count by their chance of being in.
    """
    return np.asarray((_inside(predicted, top) * _inside(transfer, top)).sum(-1) / top)


def _inside(values: Matrix, top: int) -> Matrix:
    """The chance of each to be among the `top` highest, ties broken at random."""
    edge = np.sort(values, axis=-1)[..., -top][..., None]
    above, at = values > edge, values == edge
    left = top - above.sum(-1, keepdims=True)
    return np.asarray(above + at * left / at.sum(-1, keepdims=True))


def by_target(matrix: Matrix) -> Matrix:
    """`[..., helper, target]` to `[..., target, other helpers]`."""
    size = matrix.shape[-1]
    keep = ~np.eye(size, dtype=bool)
    return np.stack([matrix[..., keep[:, target], target] for target in range(size)], axis=-2)


def statistics(
    predicted: Matrix,  # [S, T, T], helper by target; S seeds of the target's shots, or 1
    transfer: Matrix,  # [T, T]
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Figure]:
    """Figures of one predictor, each the mean over the seeds.

    Resamples are the same for every predictor, so that differences are paired.
    """
    guess, truth = by_target(predicted), by_target(transfer)
    count = len(truth)
    draws = np.random.default_rng(seed).integers(count, size=(resamples, count))
    centred_guess = guess - guess.mean(-1, keepdims=True)
    centred_truth = truth - truth.mean(-1, keepdims=True)

    def pooled(targets: npt.NDArray[np.int64]) -> Matrix:  # [R, T] to [R]
        right = centred_truth[targets].reshape(len(targets), -1)
        return np.mean(
            [spearman(left[targets].reshape(len(targets), -1), right) for left in centred_guess],
            axis=0,
        )

    targets = {
        "spearman_by_target": spearman(guess, truth[None].repeat(len(guess), 0)),
        "regret": top_regret(guess, truth[None]),
        f"top{TOP}_overlap": top_overlap(guess, truth[None], top=min(TOP, truth.shape[-1])),
    }
    found = {"spearman": Figure(float(pooled(np.arange(count)[None])[0]), pooled(draws))}
    for name, values in targets.items():
        mean = values.mean(0)
        found[name] = Figure(float(mean.mean()), mean[draws].mean(1))
    return found
