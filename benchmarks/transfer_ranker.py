"""The learned ranker on the lab's tasks, with every target left out of its fit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from benchmarks.transfer_statistics import Matrix
from pidep.similarity.estimators.ranker import USUAL_GAIN, Ranker, Trialled, fit_ranker

__all__ = ["left_out"]


def left_out(
    predicted: Mapping[str, Matrix],  # [S, T, T], helper by target
    transfer: Matrix,  # [T, T], mean over the seeds
    names: Sequence[str],
    *,
    called: str,
) -> dict[str, Matrix]:
    """What rankers say about targets that were neither target nor helper when they were fitted.

    Returns:
        The ranker over these estimators, as `called`, and `usual gain` alone, both `[S, T, T]`.
    """
    size, num_seeds = len(names), max(len(values) for values in predicted.values())
    found = {name: np.ones((num_seeds, size, size)) for name in (called, USUAL_GAIN)}

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
        ranker: Ranker = fit_ranker(examples)
        for seed in range(num_seeds):
            scores = ranker(example(seed, target, known).features)
            for helper in known:
                found[called][seed, helper, target] = scores[names[helper]]
                found[USUAL_GAIN][seed, helper, target] = ranker.usual_gains[names[helper]]
    return found
