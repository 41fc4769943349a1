"""What a pool has learned of its own transfers: measured pairs, and predictions fitted on them.

`<pool>/.transfer.json` holds the pairs. The ranker and the width of its intervals follow from them,
so they are computed when they are needed, with any task left out. A predicted gain is

    level + one part for each feature  ± half width

where the level is the mean gain of all pairs, and the parts are the ranker's. The half width is
that of split-conformal prediction: every measured target is predicted by what was fitted without
it, as target and as helper, and the half width is the 90 % quantile of how far these predictions
were off. It covers single measurements, with the noise of their few rows. Source: Lei et al.,
Distribution-free predictive inference for regression, 2018, section 2.2.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pidep.errors import ExpertError, UsageError
from pidep.files.atomic_write import write_json
from pidep.files.bounded_read import parse_json
from pidep.similarity.index import read_record, task_folders

if TYPE_CHECKING:
    from pidep.similarity.estimators.ranker import Ranker, Trialled

__all__ = [
    "COVERAGE",
    "FEATURES",
    "FEWEST_TARGETS",
    "LearnedTransfer",
    "MeasuredPair",
    "PredictedGain",
    "digests_of",
    "fresh_learned",
    "read_learned",
    "write_learned",
]

FEATURES = ("h-score", "leep", "logme", "trial")
"""What a ranker learns from. All of them come from one forward pass for each helper."""
COVERAGE = 0.9
"""Share of measured gains that an interval is meant to cover."""
FEWEST_TARGETS = 4
"""A ranker learns from three targets, and one more is left out."""
_FILE = ".transfer.json"
_FORMAT = 1


@dataclass(frozen=True)
class MeasuredPair:
    """The gain of a helper for a target of few shots, and the features that were to predict it."""

    target: str
    helper: str
    features: Mapping[str, float]
    gain: float
    """Metric of the uniform mixture {own expert, helper} minus that of the own expert."""


@dataclass(frozen=True)
class PredictedGain:
    """The gain that a helper is predicted to add, as a sum."""

    level: float
    parts: Mapping[str, float]
    """Feature to its part."""
    half_width: float | None
    """Half of the interval's width; None where too few pairs were measured."""

    @property
    def gain(self) -> float:
        """Level and parts."""
        return self.level + sum(self.parts.values())

    def to_json(self) -> dict[str, Any]:
        """For `result.json`."""
        return {"gain": self.gain, **asdict(self)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> PredictedGain:
        """As `to_json` wrote it; KeyError, TypeError or ValueError where it is malformed."""
        half = content["half_width"]
        parts = {str(name): _finite(part) for name, part in content["parts"].items()}
        return cls(_finite(content["level"]), parts, None if half is None else _finite(half))


@dataclass(frozen=True)
class LearnedTransfer:
    """The measured pairs of a pool."""

    experts: Mapping[str, str]
    """Name to digest of every expert of the pool when it was measured."""
    shots: int
    """Rows of each label that targets had."""
    seed: int
    pairs: tuple[MeasuredPair, ...]

    def without(self, name: str) -> LearnedTransfer:
        """The pairs in which a task is neither target nor helper."""
        kept = tuple(pair for pair in self.pairs if name not in (pair.target, pair.helper))
        return LearnedTransfer(self.experts, self.shots, self.seed, kept)

    @property
    def targets(self) -> list[str]:
        """Tasks whose gains were measured, with two helpers or more, sorted."""
        return [one.target for one in self._examples]

    @property
    def level(self) -> float:
        """The mean gain."""
        return math.fsum(pair.gain for pair in self.pairs) / max(1, len(self.pairs))

    @cached_property
    def _examples(self) -> list[Trialled]:
        from pidep.similarity.estimators.ranker import Trialled

        by_target: dict[str, list[MeasuredPair]] = {}
        for pair in self.pairs:
            by_target.setdefault(pair.target, []).append(pair)
        return [
            Trialled(
                target,
                {pair.helper: pair.features for pair in own},
                {pair.helper: pair.gain for pair in own},
            )
            for target, own in sorted(by_target.items())
            # One helper alone has no order.
            if len(own) > 1
        ]

    @cached_property
    def ranker(self) -> Ranker:
        """Fitted on all pairs.

        Raises:
            UsageError: fewer than three targets.
        """
        from pidep.similarity.estimators.ranker import fit_ranker

        # A helper's usual gain made the ranker worse where it was measured (decision 039).
        return fit_ranker(self._examples, usual=False)

    @cached_property
    def left_out(self) -> dict[tuple[str, str], PredictedGain]:
        """Target and helper to the prediction of what was fitted without the target.

        Targets are missing where fewer than three would be left.
        """
        found: dict[tuple[str, str], PredictedGain] = {}
        for one in self._examples:
            others = self.without(one.target)
            if len(others.targets) >= FEWEST_TARGETS - 1:
                parts = others.ranker.explain(one.features)
                found |= {
                    (one.target, helper): PredictedGain(others.level, own, None)
                    for helper, own in parts.items()
                }
        return found

    @cached_property
    def half_width(self) -> float | None:
        """Half of the interval's width; None where too few pairs were measured."""
        gains = {(pair.target, pair.helper): pair.gain for pair in self.pairs}
        off = sorted(abs(gains[pair] - said.gain) for pair, said in self.left_out.items())
        place = math.ceil((len(off) + 1) * COVERAGE)
        return off[place - 1] if 0 < place <= len(off) else None

    @cached_property
    def rank_correlation(self) -> float | None:
        """Spearman of predicted and measured gains within a target, each target left out."""
        import numpy as np
        from scipy.stats import spearmanr  # type: ignore[import-untyped]

        gains = {(pair.target, pair.helper): pair.gain for pair in self.pairs}
        said: list[float] = []
        measured: list[float] = []
        for one in self._examples:
            pairs = [pair for pair in self.left_out if pair[0] == one.target]
            for values, numbers in (
                (said, [self.left_out[pair].gain for pair in pairs]),
                (measured, [gains[pair] for pair in pairs]),
            ):
                values += [value - float(np.mean(numbers)) for value in numbers]
        if len(said) < 3 or len(set(said)) < 2 or len(set(measured)) < 2:
            return None
        return float(spearmanr(said, measured).statistic)

    def predict(self, features: Mapping[str, Mapping[str, float]]) -> dict[str, PredictedGain]:
        """The predicted gain of each helper.

        Args:
            features: helper to feature to number.

        Raises:
            UsageError: fewer than three targets were measured, or a helper lacks a feature.
        """
        parts = self.ranker.explain(features)
        return {
            helper: PredictedGain(self.level, own, self.half_width) for helper, own in parts.items()
        }


def digests_of(pool: Path) -> dict[str, str]:
    """Name to digest of every expert of a pool."""
    return {name: read_record(folder).digest for name, folder in task_folders(pool).items()}


def write_learned(pool: Path, learned: LearnedTransfer) -> Path:
    """Write what was learned into the pool; the file."""
    content = {
        "format": _FORMAT,
        "experts": dict(learned.experts),
        "shots": learned.shots,
        "seed": learned.seed,
        "pairs": [asdict(pair) for pair in learned.pairs],
    }
    write_json(pool / _FILE, content)
    return pool / _FILE


def read_learned(pool: Path) -> LearnedTransfer | None:
    """What a pool has learned, whether or not it has changed since; None where it has not.

    Raises:
        UsageError: the file is damaged, or of another version of pidep.
    """
    path = pool / _FILE
    if not path.is_file():
        return None
    try:
        return _parsed(parse_json(path.read_bytes()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"{path}: damaged ({type(error).__name__}: {error}); run pidep graph {pool} --learn"
        ) from error


def _parsed(content: dict[str, Any]) -> LearnedTransfer:
    if content["format"] != _FORMAT:
        raise ValueError(f"format {content['format']}, expected {_FORMAT}")
    pairs = tuple(
        MeasuredPair(
            str(pair["target"]),
            str(pair["helper"]),
            {name: _finite(pair["features"][name]) for name in FEATURES},
            _finite(pair["gain"]),
        )
        for pair in content["pairs"]
    )
    experts = {str(name): str(digest) for name, digest in content["experts"].items()}
    return LearnedTransfer(experts, int(content["shots"]), int(content["seed"]), pairs)


def _finite(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"expected a finite number, found {value}")
    return number


def fresh_learned(pool: Path) -> LearnedTransfer:
    """What a pool has learned.

    Raises:
        UsageError: it has learned nothing, or has other experts now; the message names one.
    """
    learned = read_learned(pool)
    if learned is None:
        raise UsageError(
            f"{pool}: has learned nothing about transfer; run pidep graph {pool} --learn, or "
            "choose another `neighbours_by`"
        )
    try:
        now = digests_of(pool)
    except ExpertError as error:
        raise UsageError(f"{pool}: cannot be compared with what it learned: {error}") from error
    if changed := _changed(learned.experts, now):
        raise UsageError(
            f"{pool}: has changed since it learned about transfer ({changed}); run pidep graph "
            f"{pool} --learn again, or choose another `neighbours_by`"
        )
    return learned


def _changed(then: Mapping[str, str], now: Mapping[str, str]) -> str:
    """One expert that differs, and how many more; empty where none does."""

    def told(names: Iterable[str], what: str) -> list[str]:
        return [f"{name!r} {what}" for name in sorted(names)]

    both = then.keys() & now.keys()
    found = [
        *told(now.keys() - then.keys(), "is new"),
        *told(then.keys() - now.keys(), "is gone"),
        *told((name for name in both if then[name] != now[name]), "is another expert"),
    ]
    return "" if not found else found[0] + (f", and {len(found) - 1} more" if found[1:] else "")
