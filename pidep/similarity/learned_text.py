"""What a pool has learned of its own transfers, for people and for `--json`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pidep.similarity.learned import COVERAGE, LearnedTransfer, PredictedGain, read_learned

__all__ = ["KnownGain", "known_gains", "learned_json", "learned_sentences", "points_interval"]


@dataclass(frozen=True)
class KnownGain:
    """A measured gain, and the prediction of what was learned without the target."""

    helper: str
    predicted: PredictedGain
    measured: float

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "helper": self.helper,
            "predicted": self.predicted.to_json(),
            "measured": self.measured,
        }


def known_gains(pool: Path, target: str) -> list[KnownGain]:
    """The measured gains of a task of the pool, best prediction first; empty where none are.

    Raises:
        UsageError: what the pool has learned is damaged.
    """
    learned = read_learned(pool)
    if learned is None:
        return []
    half = learned.half_width
    found = [
        KnownGain(pair.helper, replace(learned.left_out[place], half_width=half), pair.gain)
        for pair in learned.pairs
        if (place := (pair.target, pair.helper)) in learned.left_out and pair.target == target
    ]
    return sorted(found, key=lambda one: (-one.predicted.gain, one.helper))


def points_interval(said: PredictedGain) -> str:
    """The interval of a predicted gain, in points."""
    if said.half_width is None:
        return "not calibrated"
    low, high = (100 * (said.gain + side * said.half_width) for side in (-1, 1))
    return f"{low:.1f} to {high:.1f}"


def learned_json(learned: LearnedTransfer) -> dict[str, Any]:
    """What was learned, for `--json`."""
    return {
        "shots": learned.shots,
        "pairs": [asdict(pair) for pair in learned.pairs],
        "level": learned.level,
        "weights": dict(learned.ranker.weights),
        "rank_correlation": learned.rank_correlation,
        "half_width": learned.half_width,
        "coverage": COVERAGE,
    }


def learned_sentences(learned: LearnedTransfer) -> list[str]:
    """How much was measured, and how well the measurements predict each other."""
    found = [
        f"{len(learned.pairs)} pairs of {len(learned.targets)} targets with {learned.shots} rows "
        f"of each label: a helper adds {100 * learned.level:.1f} points on average"
    ]
    rank, half = learned.rank_correlation, learned.half_width
    if rank is not None:
        found.append(
            f"each target predicted by the others: rank correlation {rank:.2f} with its gains"
        )
    found.append(
        "too few pairs for an interval"
        if half is None
        else f"{COVERAGE:.0%} of the measured gains lie within {100 * half:.1f} points of their "
        "prediction"
    )
    return found
