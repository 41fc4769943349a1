"""The guard: the average is replaced only where held-out rows clearly favour something else."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

__all__ = ["CHOICES", "Baseline", "Comparison", "Decision", "guard"]

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


class Baseline(NamedTuple):
    """What trained candidates are compared with."""

    name: str
    losses: Tensor  # [N]


@dataclass(frozen=True)
class Comparison:
    """A candidate beside the one that it must beat."""

    against: str
    """Name of the other candidate."""
    loss: float
    """Held-out loss of the candidate."""
    against_loss: float
    """Held-out loss of the other one. Trained candidates and their baseline have temperatures of
    their own, so this can differ from `Decision.losses`.
    """
    lead: float
    """`against_loss` - `loss`."""
    needed: float | None
    """The lead from which the candidate is clearly better. None: one row cannot tell."""


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
    """Share of each candidate in the average: in proportion to prior · exp(-evidence · loss)."""
    prior: dict[str, float] = field(default_factory=dict)
    """Prior weight of each candidate, before its loss counts."""
    evidence: float = 0.0
    """Number of independent rows that the losses count for in the average."""
    comparisons: dict[str, Comparison] = field(default_factory=dict)
    """Every candidate that could have replaced the default choice."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Every other candidate, and the reason why it could not be chosen."""

    def to_json(self) -> dict[str, Any]:
        """For the run folder. Numbers are rounded to five digits after the point."""
        found: dict[str, Any] = _rounded(asdict(self))
        return found


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(inner) for name, inner in value.items()}
    return round(value, 5) if isinstance(value, float) else value


def guard(
    losses: Mapping[str, Tensor],
    weights: Mapping[str, float],
    *,
    confidence: float,
    baseline: Baseline | None = None,
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
        baseline: what trained choices are compared with; the default when absent.
        margin: factor on the lead that trained choices need.
        default: the choice that needs no evidence.
    """
    means = {name: float(loss.mean()) for name, loss in losses.items()}
    # Only the better of the two: each further comparison is one more chance of a false alarm.
    untrained = sorted(
        (name for name in _UNTRAINED if name in losses and name != default), key=means.__getitem__
    )
    trained = [name for name in CHOICES if name in losses and name not in (*_UNTRAINED, default)]
    bar = baseline or Baseline(default, losses[default])
    found = {
        name: _compared(losses[name], Baseline(default, losses[default]), confidence)
        for name in untrained[:1]
    } | {name: _compared(losses[name], bar, confidence / margin) for name in trained}
    clear = [name for name, one in found.items() if one.lead > _needed(one)]
    # Without a clear choice the record still names the nearest contender.
    other = (
        min(clear, key=means.__getitem__)
        if clear
        else max(found, key=lambda name: found[name].lead)
    )
    rows = len(losses[default])
    return Decision(
        "auto",
        other if clear else default,
        _reason(other, found[other], rows, default, clear=bool(clear)),
        rows,
        {name: round(value, 5) for name, value in means.items()},
        {name: round(value, 4) for name, value in weights.items()},
        comparisons=found,
        left_out=_left_out(untrained, losses),
    )


def _compared(losses: Tensor, bar: Baseline, confidence: float) -> Comparison:
    # Differences row by row: hard rows are hard for every candidate, and the noise they share
    # cancels.
    gaps = bar.losses - losses
    rows = len(gaps)
    # One row has no standard error, so no evidence is enough.
    needed = float(gaps.std() / math.sqrt(rows)) / confidence if rows > 1 else None
    return Comparison(
        bar.name, float(losses.mean()), float(bar.losses.mean()), float(gaps.mean()), needed
    )


def _needed(one: Comparison) -> float:
    return math.inf if one.needed is None else one.needed


def _reason(name: str, one: Comparison, rows: int, default: str, *, clear: bool) -> str:
    """The decision in one sentence, from the numbers of its record."""
    what, against = CHOICES[name], CHOICES[one.against]
    if one.against != default:
        against += ", the best of the simpler candidates"
    figures = f"held-out loss {one.loss:.3f} against {one.against_loss:.3f}"
    needed = (
        "one row cannot tell"
        if one.needed is None
        else f"it leads by {one.lead:.3f} and needs {one.needed:.3f} ({rows} rows)"
    )
    if clear:
        return f"{what} is clearly better than {against}: {figures}; {needed}"
    if one.lead <= 0:
        return (
            f"no other candidate is better than the one it is compared with; {what} comes nearest: "
            f"{figures} of {against} ({rows} rows)"
        )
    return (
        f"no other candidate is clearly better; {what} comes nearest: {figures} of {against}; "
        f"{needed}"
    )


def _left_out(untrained: list[str], losses: Mapping[str, Tensor]) -> dict[str, str]:
    """Candidates that have a loss and could not be chosen."""
    found = {}
    for name in untrained[1:]:
        found[name] = f"not compared: {CHOICES[untrained[0]]} has the lower loss"
    if "in_context" in losses:
        found["in_context"] = "a part of the average, not a choice of its own"
    return found
