"""What a server counts about the versions of a name while it has a candidate."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pidep.errors import AnswerError, PidepError
from pidep.inputs.row import Row
from pidep.runtime.answer import Answer
from pidep.serving.rollout import Rollout

__all__ = ["EXAMPLES_VARIABLE", "RolloutCounts", "VersionCounts"]

EXAMPLES_VARIABLE = "PIDEP_SHADOW_EXAMPLES"
"""How many disagreements of a shadow the status shows; 0 shows none."""
_EXAMPLES = 5
_TEXT = 80
"""Characters of an example's text."""


@dataclass
class VersionCounts:
    """One version's rows since the rollout began."""

    rows: int = 0
    errors: int = 0
    """Rows on which the graph failed, or whose answer was not finite. Faults of a request, such as
    a damaged image, are not counted."""
    labels: Counter[str] = field(default_factory=Counter)
    runs: dict[int, list[float]] = field(default_factory=dict)
    """Rows of a run, rounded up to a power of two, to the number of runs and their milliseconds."""

    def add(self, answers: Sequence[Answer | PidepError], *, ms: float) -> None:
        """Count one run of the graph."""
        self.rows += len(answers)
        self.errors += sum(isinstance(answer, AnswerError) for answer in answers)
        self.labels.update(one.label for one in answers if isinstance(one, Answer) and one.labels)
        # Rows of a large run are cheaper than rows of a small one, so sizes are kept apart.
        runs = self.runs.setdefault(1 << (len(answers) - 1).bit_length(), [0, 0.0])
        runs[0] += 1
        runs[1] += ms

    def to_json(self, digest: str) -> dict[str, Any]:
        """For the status."""
        return {
            "digest": digest,
            "rows": self.rows,
            "errors": self.errors,
            "labels": dict(self.labels),
            "runs": {
                str(size): [int(number), round(ms, 3)]
                for size, (number, ms) in sorted(self.runs.items())
            },
        }


@dataclass
class RolloutCounts:
    """The versions of one name."""

    rollout: Rollout
    stable: VersionCounts = field(default_factory=VersionCounts)
    canary: VersionCounts = field(default_factory=VersionCounts)
    shadow: VersionCounts = field(default_factory=VersionCounts)
    agree: int = 0
    disagree: int = 0
    largest_gap: float = 0.0
    """Between the scores of stable and shadow for one label of a row."""
    examples: list[dict[str, Any]] = field(default_factory=list)
    """The last disagreements."""

    def continues(self, rollout: Rollout) -> bool:
        """Whether the counts are about these versions; another weight changes no version."""
        own = self.rollout
        return (own.stable, own.canary, own.shadow) == (
            rollout.stable,
            rollout.canary,
            rollout.shadow,
        )

    def compare(self, row: Row, answer: Answer | PidepError, other: Answer | PidepError) -> None:
        """Count whether the shadow agrees with the stable version on a row."""
        if not isinstance(answer, Answer) or not isinstance(other, Answer):
            return  # counted as errors of their versions
        own, theirs = _scores(answer), _scores(other)
        gaps = [abs(own.get(label, 0.0) - theirs.get(label, 0.0)) for label in {*own, *theirs}]
        self.largest_gap = max([self.largest_gap, *gaps])
        if answer.label == other.label:
            self.agree += 1
            return
        self.disagree += 1
        most = _most_examples()
        example = {
            "text": _text(row)[:_TEXT],
            "stable": answer.label,
            "stable_score": round(own.get(answer.label, 0.0), 4),
            "shadow": other.label,
            "shadow_score": round(theirs.get(other.label, 0.0), 4),
        }
        self.examples = [*self.examples, example][-most:] if most else []

    def to_json(self) -> dict[str, Any]:
        """For the status."""
        own = self.rollout
        found: dict[str, Any] = {"stable": self.stable.to_json(own.stable)}
        if own.canary is not None:
            found["canary"] = {**self.canary.to_json(own.canary), "weight": own.weight}
        if own.shadow is not None:
            found["shadow"] = {
                **self.shadow.to_json(own.shadow),
                "agree": self.agree,
                "disagree": self.disagree,
                "largest_gap": round(self.largest_gap, 6),
                "examples": self.examples,
            }
        return found


def _text(row: Row) -> str:
    columns = "" if row.columns is None else json.dumps(dict(row.columns), ensure_ascii=False)
    return row.text or columns


def _scores(answer: Answer) -> dict[str, float]:
    return dict(zip(answer.labels, map(float, answer.scores), strict=True))


def _most_examples() -> int:
    text = os.environ.get(EXAMPLES_VARIABLE, "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 4 else _EXAMPLES
