"""A learned ranker: a ridge over estimators, fitted on transfers that were measured in the pool.

What counts is the order of the helpers of one target. So features and gains are taken relative to
the target: each is centred over its helpers, and features are divided by their spread there. One
more feature may be a helper's usual gain: what it added to the other targets.

No weight is below 0. Every estimator means "larger is better", so a negative weight would only fit
the noise of the few targets that a pool has measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from pidep.errors import UsageError
from pidep.similarity.estimators.estimator import Vector

__all__ = ["PENALTIES", "USUAL_GAIN", "Ranker", "Trialled", "fit_ranker"]

USUAL_GAIN = "usual gain"
PENALTIES = (1.0, 10.0, 100.0, 1000.0, 10000.0)
"""Penalties of the ridge; the one that predicts left-out targets best is used."""

Features = Mapping[str, Mapping[str, float]]
"""Helper to estimator to number."""


@dataclass(frozen=True)
class Trialled:
    """A target whose transfers were measured, at one draw of its rows."""

    target: str
    features: Features
    gains: Mapping[str, float]
    """Helper to measured gain."""


@dataclass(frozen=True)
class Ranker:
    """Weights of the estimators; an estimator counts in standard deviations over the helpers."""

    weights: Mapping[str, float]
    """0 or above."""
    usual_gains: Mapping[str, float]
    """Helper to its mean gain above the other helpers of the same targets; empty where it is no
    feature.
    """
    penalty: float

    def __call__(self, features: Features) -> dict[str, float]:
        """A number for each helper; larger is better. It is the sum of the parts in `explain`.

        Raises:
            UsageError: a helper lacks a feature.
        """
        return {helper: sum(parts.values()) for helper, parts in self.explain(features).items()}

    def explain(self, features: Features) -> dict[str, dict[str, float]]:
        """Helper to feature to its part of the number; raises as a call."""
        names = [name for name in self.weights if name != USUAL_GAIN]
        usual = self.usual_gains if USUAL_GAIN in self.weights else None
        parts = _relative(features, names, usual) * np.array(list(self.weights.values()))
        return {
            helper: dict(zip(self.weights, row.tolist(), strict=True))
            for helper, row in zip(features, parts, strict=True)
        }


def fit_ranker(
    examples: Sequence[Trialled], *, usual: bool = True, penalties: Sequence[float] = PENALTIES
) -> Ranker:
    """Fit the weights, with the penalty that predicts left-out targets best.

    Args:
        usual: a helper's usual gain is one more feature.

    Raises:
        UsageError: fewer than three targets, or helpers without a gain or a feature.
    """
    targets = sorted({one.target for one in examples})
    if len(targets) < 3:
        raise UsageError(
            f"ranker: learns from the transfers of at least three targets, found {len(targets)}; "
            "measure more"
        )
    names = sorted(next(iter(examples[0].features.values())))
    blocks = _blocks(sorted(examples, key=lambda one: one.target), names, usual=usual)

    def error(penalty: float) -> float:
        """Squared error on each target, of weights that were fitted on the others."""
        found = 0.0
        for target, (features, gains) in blocks.items():
            others = [block for name, block in blocks.items() if name != target]
            found += float(((features @ _weights(others, penalty) - gains) ** 2).sum())
        return found

    best = min(penalties, key=error)
    weights = _weights(list(blocks.values()), best)
    every = (*names, USUAL_GAIN) if usual else names
    return Ranker(
        dict(zip(every, weights.tolist(), strict=True)),
        _usual_gains(examples) if usual else {},
        best,
    )


def _blocks(
    examples: Sequence[Trialled], names: Sequence[str], *, usual: bool
) -> dict[str, tuple[Vector, Vector]]:
    """Target to features `[P, F]` and centred gains `[P]`."""
    found = {}
    for target, own in groupby(examples, key=lambda one: one.target):
        # A helper's usual gain must not tell its gain on this very target.
        others = [one for one in examples if one.target != target]
        known = _usual_gains(others) if usual else None
        rows, gains = [], []
        for one in own:
            if one.features.keys() != one.gains.keys():
                raise UsageError(
                    f"ranker: target {target!r} has features of {len(one.features)} helpers and "
                    f"gains of {len(one.gains)}; expected the same helpers"
                )
            rows.append(_relative(one.features, names, known))
            values = np.array([one.gains[helper] for helper in one.features])
            gains.append(values - values.mean())
        found[target] = (np.concatenate(rows), np.concatenate(gains))
    return found


def _usual_gains(examples: Sequence[Trialled]) -> dict[str, float]:
    above: dict[str, list[float]] = {}
    for one in examples:
        mean = float(np.mean(list(one.gains.values())))
        for helper, gain in one.gains.items():
            above.setdefault(helper, []).append(gain - mean)
    return {helper: float(np.mean(gains)) for helper, gains in above.items()}


def _relative(
    features: Features, names: Sequence[str], usual: Mapping[str, float] | None
) -> Vector:
    """`[H, F]`: each feature centred over the helpers and divided by its spread there."""
    for helper, own in features.items():
        missing = [name for name in names if name not in own]
        if missing:
            raise UsageError(f"ranker: helper {helper!r} lacks {missing[0]!r}; compute it first")
    values = np.array(
        [
            [own[name] for name in names] + ([] if usual is None else [usual.get(helper, 0.0)])
            for helper, own in features.items()
        ]
    )
    centred = values - values.mean(0)
    spread = centred.std(0)
    # Rounding must not become a feature: equal numbers have a spread of about 1e-17.
    flat = spread <= 1e-9 * np.abs(values).max(0)
    return np.asarray(np.where(flat, 0.0, centred / np.where(flat, 1.0, spread)))


def _weights(blocks: Sequence[tuple[Vector, Vector]], penalty: float) -> Vector:
    from scipy.optimize import nnls  # type: ignore[import-untyped]

    features, gains = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
    # A ridge is least squares with one more row a feature. Centred features and gains need no
    # intercept. scikit-learn's Ridge without negative weights is iterative, and often stops early.
    count = features.shape[1]
    more = np.sqrt(penalty) * np.eye(count)
    return np.asarray(
        nnls(np.concatenate([features, more]), np.concatenate([gains, np.zeros(count)]))[0]
    )
