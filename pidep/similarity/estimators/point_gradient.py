"""Signed gradients at one base point: their cosine, and a Taylor expansion of the target's loss."""

from __future__ import annotations

import numpy as np

from pidep.similarity.estimators.base_point import Gradient
from pidep.similarity.estimators.estimator import Cost, Estimator, Helper, Target, Vector, each
from pidep.similarity.estimators.point_fisher import helper_facts
from pidep.similarity.estimators.texts import cosine

__all__ = ["gradient_cosine", "taylor"]

_COST = Cost(task_forward=1, task_backward=1)


def _flat(tensors: Gradient) -> Vector:
    """All tensors end to end, by name."""
    parts = [tensors[name].ravel() for name in sorted(tensors)]
    return np.asarray(np.concatenate(parts), np.float64)


def gradient_cosine(point: str) -> Estimator:
    """The cosine of the two tasks' mean gradients: whether they pull the same way."""

    def estimate(target: Target, helper: Helper) -> float:
        return cosine(
            _flat(target.facts(point).gradient), _flat(helper_facts(helper, point).gradient)
        )

    return Estimator(f"gradient cosine at the {point} point", _COST, each(estimate))


def taylor(point: str, *, order: int) -> Estimator:
    """Minus the change of the target's loss from the point to the helper's tensors.

    First order: −⟨g, d⟩ with the target's mean gradient g and d = helper − point. Second order:
    −⟨g, d⟩ − ½ Σ F d², with the target's diagonal Fisher F in place of the Hessian.
    """

    def estimate(target: Target, helper: Helper) -> float:
        facts = target.facts(point)
        own = {
            f"{site}.{name}": array
            for site, tensors in helper.expert.sites.items()
            for name, array in tensors.items()
        }
        step = _flat(own) - _flat(facts.point.tensors())
        change = float(_flat(facts.gradient) @ step)
        if order == 2:
            change += 0.5 * float(_flat(facts.fisher) @ step**2)
        return -change

    name = {1: "first order", 2: "second order"}[order]
    return Estimator(f"{name} at the {point} point", _COST, each(estimate))
