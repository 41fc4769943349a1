"""Whether one matrix predicts another, target by target. numpy only.

Rank correlation, regret of the top choice, bootstrap over targets, and how reliable the measured
matrix is itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

__all__ = [
    "TOP",
    "Figure",
    "Matrix",
    "Reliability",
    "by_target",
    "ceiling",
    "reliability",
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
    by_target: tuple[float, ...] = ()
    """The values whose mean it is, where they are asked for."""

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
    centred_guess, centred_truth = _centred(guess), _centred(truth)

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


def _centred(values: Matrix) -> Matrix:
    """Each target's mean over its helpers subtracted."""
    return np.asarray(values - values.mean(-1, keepdims=True))


# --- the noise of what is measured ----------------------------


@dataclass(frozen=True)
class Reliability:
    """How well a measured matrix predicts itself, measured again. The figure is `spearman`'s."""

    half: float
    """Correlation of two halves of the measurement, mean over many splits."""
    full: float
    """The same for two whole measurements, by Spearman and Brown's formula."""

    @property
    def ceiling(self) -> float:
        """The correlation that a perfect prediction has with the measurement."""
        return math.sqrt(max(0.0, self.full))

    def to_json(self) -> dict[str, float]:
        """Rounded."""
        return {
            "half": round(self.half, 4),
            "full": round(self.full, 4),
            "ceiling": round(self.ceiling, 4),
        }


def reliability(
    gains: Sequence[Matrix],  # of each target [S, H, N]: seeds, helpers, test rows
    *,
    over: frozenset[str],
    splits: int = 400,
    seed: int = 0,
) -> Reliability:
    """Split-half reliability of the transfer over test rows, over seeds, or over both.

    Over both, the halves share neither a row nor a seed. The correlation of two halves is raised
    to that of two wholes by 2r / (1 + r). An odd seed is left out, so the result is a little low.

    Args:
        over: `rows`, `seeds`.
    """
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(splits):
        halves: tuple[list[Matrix], list[Matrix]] = ([], [])
        num_seeds = len(gains[0])
        # All targets share the seeds' split: a seed is one draw for all of them.
        seeds = _halves(rng, num_seeds) if "seeds" in over else (np.arange(num_seeds),) * 2
        for own in gains:
            rows = _halves(rng, own.shape[2]) if "rows" in over else (np.arange(own.shape[2]),) * 2
            for half, some_seeds, some_rows in zip(halves, seeds, rows, strict=True):
                half.append(own[some_seeds][:, :, some_rows].mean((0, 2)))
        left, right = (_centred(np.stack(half)).ravel() for half in halves)
        found.append(float(spearman(left, right)))
    half = float(np.mean(found))
    return Reliability(half, 2 * half / (1 + half) if half > -1 else -1.0)


def _halves(
    rng: np.random.Generator, count: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    order = rng.permutation(count)
    return order[: count // 2], order[count // 2 : count // 2 * 2]


def ceiling(gains: Sequence[Matrix], *, splits: int = 400) -> dict[str, Reliability]:
    """Reliability over test rows, over seeds and over both; seeds where there are two or more."""
    kinds = {"rows": frozenset({"rows"})}
    if len(gains[0]) > 1:
        kinds |= {"seeds": frozenset({"seeds"}), "both": frozenset({"rows", "seeds"})}
    return {name: reliability(gains, over=over, splits=splits) for name, over in kinds.items()}
