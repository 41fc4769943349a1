"""The guard: the average is replaced only where held-out rows clearly favour something else."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

__all__ = ["CHOICES", "Decision", "guard"]

CHOICES: Mapping[str, str] = {
    "mixture": "the average",
    "own_expert": "the own expert",
    "uniform": "the uniform mixture",
    "joint": "joint training",
    "own_expert_high_rate": "the own expert at the high rate",
    "joint_high_rate": "joint training at the high rate",
}
"""Every possible choice, in words."""
_UNTRAINED = ("own_expert", "uniform")
"""Choices that the average contains; no further training separates them from it."""


@dataclass(frozen=True)
class Decision:
    """A choice, and the held-out figures behind it."""

    policy: str
    chosen: str
    """One of `CHOICES`."""
    why: str
    rows: int = 0
    """Held-out rows behind the losses."""
    losses: dict[str, float] = field(default_factory=dict)
    """Held-out cross-entropy (nats a row) of each candidate."""
    weights: dict[str, float] = field(default_factory=dict)
    """Share of each candidate in the average."""

    def to_json(self) -> dict[str, Any]:
        """For the run folder."""
        return asdict(self)


def guard(
    losses: Mapping[str, Tensor],
    weights: Mapping[str, float],
    *,
    confidence: float,
    baseline: Tensor | None = None,
    margin: float = 1.0,
    default: str = "mixture",
) -> Decision:
    """The default choice, unless held-out rows clearly favour another one.

    Another choice must lead by more than one standard error of the difference, divided by the
    confidence: the fewer rows, the larger the lead. Of several such choices the one of the least
    loss is taken.

    Args:
        losses: `[N]` held-out losses of each candidate.
        weights: share of each candidate in the average, for the record.
        confidence: confidence in the number of training rows, in (0, 1).
        baseline: `[N]` losses that trained choices are compared with; those of the default when
            absent.
        margin: factor on the lead that trained choices need.
        default: the choice that needs no evidence.
    """
    means = {name: float(loss.mean()) for name, loss in losses.items()}
    rows = len(losses[default])
    untrained = [name for name in _UNTRAINED if name in losses and name != default]
    # Only the better of the two: each further comparison is one more chance of a false alarm.
    untrained = sorted(untrained, key=lambda name: means[name])[:1]
    trained = [name for name in CHOICES if name in losses and name not in (*_UNTRAINED, default)]
    compared_with = {
        **dict.fromkeys(untrained, losses[default]),
        **dict.fromkeys(trained, losses[default] if baseline is None else baseline),
    }
    # Differences row by row: hard rows are hard for every candidate, and the noise they share
    # cancels.
    gaps = {name: loss - losses[name] for name, loss in compared_with.items()}
    needed = {
        # One row has no standard error, so no evidence is enough.
        name: float(gap.std() / math.sqrt(rows)) / confidence if rows > 1 else math.inf
        for name, gap in gaps.items()
    }
    needed |= {name: needed[name] * margin for name in trained}
    clear = [name for name in compared_with if float(gaps[name].mean()) > needed[name]]
    # Without a clear choice the record still names the nearest contender.
    other = min(clear or compared_with, key=lambda name: means[name])
    figures = (
        f"held-out loss {float(compared_with[other].mean()):.3f}, "
        f"{CHOICES[other]} {means[other]:.3f} (counts from {needed[other]:.3f}, {rows} rows)"
    )
    why = (
        f"{CHOICES[default]} is clearly worse: {figures}"
        if clear
        else f"nothing else is clearly better: {figures}"
    )
    return Decision(
        "auto",
        other if clear else default,
        why,
        rows,
        {name: round(value, 5) for name, value in means.items()},
        {name: round(value, 4) for name, value in weights.items()},
    )
