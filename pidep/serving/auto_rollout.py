"""Watches a canary on running servers, and promotes it or takes it back."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pidep.errors import ServingError, UsageError
from pidep.serving.instances import Instances, confirmed
from pidep.serving.rollout import pin
from pidep.serving.routes import end_canary, promote_canary
from pidep.serving.store import ExpertStore, Replaced

__all__ = ["Evidence", "Rules", "decide", "watch_canary"]

_POLL_S = 0.2
_FEWEST_ERRORS = 3
"""Errors of a canary before its share of errors counts: one may be chance."""
_FEWEST_RUNS = 5
"""Runs of one size, of each version, before their times are compared."""
_Z = 3.29
"""Of a normal distribution: a difference by chance is larger once in 1,000."""


@dataclass(frozen=True)
class Rules:
    """When a canary is promoted, and when it is taken back."""

    rows: int = 1000
    """Rows that it must answer."""
    max_errors: float = 0.01
    """Largest share of failed rows above the stable version's share."""
    max_slowdown: float = 1.5
    """Largest time of a run, as a multiple of the stable version's."""
    max_drift: float = 0.1
    """Largest difference between the shares of a label."""
    within: float = 3600.0
    """Seconds for the verdict; then the canary is taken back."""

    def __post_init__(self) -> None:
        """Refuse rules that no canary could meet or fail.

        Raises:
            UsageError: a value is out of range.
        """
        for name, low in (("rows", 1), ("max_slowdown", 1), ("max_errors", 0), ("max_drift", 0)):
            if not low <= getattr(self, name) < math.inf:
                found = getattr(self, name)
                raise UsageError(f"`{name}`: expected at least {low}, found {found:g}")
        if not 0 < self.within < math.inf:
            raise UsageError(f"`within`: expected more than 0, found {self.within:g}")


@dataclass
class Evidence:
    """What some servers counted about one version."""

    rows: int = 0
    errors: int = 0
    labels: Counter[str] = field(default_factory=Counter)
    runs: dict[str, list[float]] = field(default_factory=dict)
    """As in the status: size to number of runs and milliseconds."""

    @classmethod
    def of(cls, counted: Iterable[Mapping[str, Any]]) -> Evidence:
        """The sum over servers."""
        found = cls()
        for one in counted:
            found.rows += one["rows"]
            found.errors += one["errors"]
            found.labels.update(one["labels"])
            for size, (number, ms) in one["runs"].items():
                runs = found.runs.setdefault(size, [0, 0.0])
                runs[0] += number
                runs[1] += ms
        return found

    @property
    def error_share(self) -> float:
        """Of its rows."""
        return self.errors / self.rows if self.rows else 0.0


def decide(stable: Evidence, canary: Evidence, rules: Rules) -> str | None:
    """Why the canary must go; empty where it may be promoted; None where more rows are needed.

    Errors count from the first ones. Times and labels are compared once the canary has its rows: a
    comparison that is repeated until it fails would fail by chance.
    """
    more = canary.error_share - stable.error_share
    if canary.errors >= _FEWEST_ERRORS and more > rules.max_errors:
        return (
            f"{canary.errors} of {canary.rows} rows failed, "
            f"{stable.errors} of {stable.rows} of the stable version"
        )
    if canary.rows < rules.rows:
        return None
    slowdown = _slowdown(stable, canary)
    if slowdown is not None and slowdown > rules.max_slowdown:
        return f"a run takes {slowdown:.2f} times as long as one of the stable version"
    return _drift(stable, canary, rules.max_drift)


def watch_canary(
    store: ExpertStore,
    name: str,
    digest: str,
    *,
    instances: Instances,
    rules: Rules,
    progress: Callable[[Evidence], None] = lambda _: None,
) -> Replaced:
    """Promote the canary once it has answered its rows, or take it back.

    A process that is killed leaves the canary as it is; the command again goes on watching.

    Args:
        digest: of the canary. Another canary is left alone.

    Raises:
        ServingError: the canary was taken back, and why; or somebody else changed it.
    """
    started = seen = time.monotonic()
    reason = None
    while reason is None:
        route = store.manifest().routes.get(name)
        if route is None or route.canary is None or route.canary.digest != digest:
            raise ServingError(f"canary of {name!r}: another process has changed the route; left")
        try:
            reason, canary = _look(instances, name, digest, rules)
            seen = time.monotonic()
            progress(canary)
        except ServingError as error:
            # A server may start again. One that stays away cannot be judged.
            if time.monotonic() - seen > instances.timeout_s:
                reason = f"a server cannot be watched: {error}"
        if reason is None and time.monotonic() - started > rules.within:
            reason = f"no verdict within {rules.within:g} s"
        if reason is None:
            time.sleep(_POLL_S)
    if reason:
        end_canary(store, name, expected=digest, action="rollback")
        raise ServingError(
            f"canary of {name!r} rolled back: {digest[:19]}…: {reason}; the stable version "
            "answers every row"
        )
    return confirmed(
        store, name, lambda: promote_canary(store, name, expected=digest), instances=instances
    )


def _look(
    instances: Instances, name: str, digest: str, rules: Rules
) -> tuple[str | None, Evidence]:
    """The verdict on what the servers count now."""
    found = instances.status()
    for url, status in found.items():
        refused = status["refused"].get(pin(name, "canary"), {})
        if refused.get("digest") == digest:
            return f"{url} refuses the version: {refused['reason']}", Evidence()
    counted = [status.get("rollouts", {}).get(name, {}) for status in found.values()]
    # A server that has not seen this canary yet counts another one.
    ours = [one for one in counted if one.get("canary", {}).get("digest") == digest]
    stable = Evidence.of(one["stable"] for one in ours)
    canary = Evidence.of(one["canary"] for one in ours)
    return decide(stable, canary, rules), canary


def _slowdown(stable: Evidence, canary: Evidence) -> float | None:
    """Time of the canary's runs as a multiple of the stable version's, for runs of one size.

    None where no size has enough runs of both.
    """
    own = expected = 0.0
    for size, (number, ms) in canary.runs.items():
        others, others_ms = stable.runs.get(size, (0, 0.0))
        if min(number, others) >= _FEWEST_RUNS and others_ms > 0:
            own += ms
            expected += number * others_ms / others
    return own / expected if expected else None


def _drift(stable: Evidence, canary: Evidence, most: float) -> str:
    """The label whose share differs by more than allowed and more than chance; or empty."""
    few, many = canary.labels.total(), stable.labels.total()
    if not few or not many:
        return ""
    for label in sorted({*stable.labels, *canary.labels}):
        old, new = stable.labels[label] / many, canary.labels[label] / few
        both = (stable.labels[label] + canary.labels[label]) / (few + many)
        by_chance = _Z * math.sqrt(both * (1 - both) * (1 / few + 1 / many))
        if abs(new - old) > max(most, by_chance):
            return f"label {label!r} has a share of {new:.3f}, and {old:.3f} of the stable version"
    return ""
