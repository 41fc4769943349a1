"""What the three helpers that an estimator chooses add together."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from benchmarks.prediction_lab import Draw, Lab
from benchmarks.transfer_statistics import TOP, Figure, Matrix
from pidep.experts.folder import Expert

__all__ = ["RANDOM_DRAWS", "mixture_gains"]

RANDOM_DRAWS = 2
"""Random choices of each target and seed."""


def mixture_gains(
    lab: Lab,
    full: Mapping[str, Expert],
    predicted: Mapping[str, Matrix],  # [S, T, T], helper by target
    *,
    shots: int,
    tuned: bool = False,
    resamples: int = 2000,
) -> dict[str, Figure]:
    """Accuracy of the mixture of a few-shot expert and its three helpers, minus its own.

    Args:
        tuned: π, of the first seeds, instead of the uniform mixture.

    Resamples of the targets are the same for every estimator, so differences are paired.

    Returns:
        Estimator to figure, and `random`.
    """
    tasks, seeds = lab.tasks, lab.settings.tuned_seeds if tuned else lab.settings.seeds
    rng = np.random.default_rng(0)
    sums = {name: np.zeros(len(tasks)) for name in (*predicted, "random")}
    for place, seed in enumerate(seeds):
        for column in range(len(tasks)):
            others = np.array([row for row in range(len(tasks)) if row != column])
            chosen = {
                name: [others[np.argsort(-values[place, others, column], kind="stable")[:TOP]]]
                for name, values in predicted.items()
            }
            chosen["random"] = [rng.choice(others, TOP, replace=False) for _ in range(RANDOM_DRAWS)]
            for name, sets in chosen.items():
                if tuned:
                    sets = sets[:1]
                gains = [
                    _gain(lab, full, column, Draw(shots, seed), one, tuned=tuned) for one in sets
                ]
                sums[name][column] += float(np.mean(gains))
    draws = np.random.default_rng(0).integers(len(tasks), size=(resamples, len(tasks)))
    means = {name: total / len(seeds) for name, total in sums.items()}
    return {
        name: Figure(float(values.mean()), values[draws].mean(1), tuple(values.tolist()))
        for name, values in means.items()
    }


def _gain(
    lab: Lab,
    full: Mapping[str, Expert],
    target: int,
    draw: Draw,
    helpers: npt.NDArray[np.int64],
    *,
    tuned: bool,
) -> float:
    task = lab.tasks[target]
    own = lab.expert(task, draw)
    # Sorted: one evaluation serves every estimator that chooses the same three.
    experts = [full[lab.tasks[row].name] for row in np.sort(helpers)]
    mixed = lab.tuned(task, draw, own, *experts) if tuned else lab.correct(task, own, *experts)
    return float((mixed - lab.correct(task, own)).mean())
