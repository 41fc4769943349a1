"""How a mixture is learned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pidep.adapters.mixture import AlphaPer
from pidep.training.loop import Schedule

__all__ = ["InterpolateSettings", "Policy"]

Policy = Literal["auto", "frozen", "anchored", "free", "uniform"]


@dataclass(frozen=True)
class InterpolateSettings:
    """Policy and learning rates; `schedule` carries steps, batches, seed and fingerprint."""

    schedule: Schedule
    policy: Policy = "auto"
    alpha_per: AlphaPer = "site"
    alpha_start: Literal["uniform", "similarity"] = "uniform"
    alpha_learning_rate: float = 2e-2
    own_learning_rate: float = 1e-3
    """Peak learning rate of the own expert; of all experts under `free`."""
    expert_learning_rate: float = 1e-4
    """Peak learning rate of all experts under `anchored`."""
    folds: int = 3
    """Folds of the cross-validation inside the shots, under `auto`."""
