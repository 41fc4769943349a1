"""The learned ranker on the lab's tasks, with every target left out of its fit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from benchmarks.transfer_statistics import Matrix
from pidep.similarity.estimators.ranker import USUAL_GAIN, Ranker, Trialled, fit_ranker
from pidep.similarity.learned import COVERAGE, FEWEST_TARGETS, LearnedTransfer, MeasuredPair

__all__ = ["coverage", "left_out"]


def left_out(
    predicted: Mapping[str, Matrix],  # [S, T, T], helper by target
    transfer: Matrix,  # [T, T], mean over the seeds
    names: Sequence[str],
    *,
    called: str,
    usual: bool = True,
) -> dict[str, Matrix]:
    """What rankers say about targets that were neither target nor helper when they were fitted.

    Args:
        usual: a helper's usual gain is one more feature.

    Returns:
        The ranker over these estimators, as `called`, `[S, T, T]`; and `usual gain` alone, where it
        is a feature.
    """
    size, num_seeds = len(names), max(len(values) for values in predicted.values())
    names_found = (called, USUAL_GAIN) if usual else (called,)
    found = {name: np.ones((num_seeds, size, size)) for name in names_found}

    def example(seed: int, target: int, helpers: Iterable[int]) -> Trialled:
        some = list(helpers)
        return Trialled(
            names[target],
            {
                names[helper]: {
                    name: float(values[seed, helper, target]) for name, values in predicted.items()
                }
                for helper in some
            },
            {names[helper]: float(transfer[helper, target]) for helper in some},
        )

    for target in range(size):
        known = [task for task in range(size) if task != target]
        examples = [
            example(seed, task, (helper for helper in known if helper != task))
            for task in known
            for seed in range(num_seeds)
        ]
        ranker: Ranker = fit_ranker(examples, usual=usual)
        for seed in range(num_seeds):
            scores = ranker(example(seed, target, known).features)
            for helper in known:
                found[called][seed, helper, target] = scores[names[helper]]
                if usual:
                    found[USUAL_GAIN][seed, helper, target] = ranker.usual_gains[names[helper]]
    return found


def coverage(
    predicted: Mapping[str, Matrix],  # [S, T, T], helper by target
    by_seed: Matrix,  # [S, T, T], measured transfer
    names: Sequence[str],
    *,
    num_seeds: int = 2,
) -> dict[str, float]:
    """How often a pool's intervals cover gains of a target that the pool has not.

    For each target and each of the first seeds, a pool of the other tasks learns from all of its
    pairs at that draw, as `pidep graph --learn` does from a sample. Empty for four tasks or fewer.
    """
    size = len(names)
    if size <= FEWEST_TARGETS:
        return {}
    inside, widths, errors = [], [], []
    for target in range(size):
        known = [task for task in range(size) if task != target]
        for seed in range(num_seeds):

            def features(helper: int, of: int, seed: int = seed) -> dict[str, float]:
                return {name: float(values[seed, helper, of]) for name, values in predicted.items()}

            pairs = tuple(
                MeasuredPair(
                    names[of],
                    names[helper],
                    features(helper, of),
                    float(by_seed[seed, helper, of]),
                )
                for of in known
                for helper in known
                if helper != of
            )
            learned = LearnedTransfer({}, 0, seed, pairs)
            said = learned.predict({names[helper]: features(helper, target) for helper in known})
            assert learned.half_width is not None
            widths.append(learned.half_width)
            for helper in known:
                off = abs(said[names[helper]].gain - float(by_seed[seed, helper, target]))
                errors.append(off)
                inside.append(off <= learned.half_width)
    return {
        "asked": COVERAGE,
        "covered": round(float(np.mean(inside)), 4),
        "half_width": round(float(np.mean(widths)), 4),
        "mean_error": round(float(np.mean(errors)), 4),
    }
