"""The mixture of own expert and helpers, learned on the target's rows.

`policies` is the entry; `auto`, `candidates`, `held_out` and `guard` are the policy that decides
by held-out rows. `path` measures the line between two experts.
May import `pidep.similarity`, `pidep.training`, `pidep.tasks` and the rooms below them.
"""

from pidep.interpolation.auto import Interpolated, tuned_own
from pidep.interpolation.guard import Decision
from pidep.interpolation.path import ExpertPath, PathPoint, evaluate_path
from pidep.interpolation.policies import interpolate, train_jointly
from pidep.interpolation.settings import InterpolateSettings, Policy

__all__ = [
    "Decision",
    "ExpertPath",
    "InterpolateSettings",
    "Interpolated",
    "PathPoint",
    "Policy",
    "evaluate_path",
    "interpolate",
    "train_jointly",
    "tuned_own",
]
