"""A bank whose rows are answered by the versions that the routes of their names choose."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from pidep.artifacts.manifest import Role
from pidep.errors import AnswerError, PidepError
from pidep.inputs.row import Row
from pidep.runtime.answer import Answer
from pidep.runtime.bank import Bank, Residents
from pidep.serving.rollout import Rollout, content_key, pin, pinned
from pidep.serving.rollout_counts import RolloutCounts, VersionCounts
from pidep.serving.watcher import Serving

__all__ = ["RoutedBank"]

Found = dict[int, Answer | PidepError]
"""Row number to answer."""


class RoutedBank:
    """Answers batches, and counts what the candidates do. For one thread.

    Rows of a name with a candidate run apart from the others, one run for each version: a failing
    candidate touches no other row, and its time is its own.
    """

    def __init__(self, bank: Bank) -> None:
        self._bank = bank
        self._counts: dict[str, RolloutCounts] = {}

    def run(
        self, served: Serving, rows: Sequence[Row], *, experts: Sequence[str], keys: Sequence[bytes]
    ) -> list[Answer | PidepError]:
        """Answer each row by a version of the expert that it names.

        Args:
            experts: what each row names, such as `film`, or `film@canary` for that version.
            keys: what decides between stable and canary; empty for the row's own content.
        """
        apart: dict[str, list[int]] = {}
        others: list[int] = []
        for at, name in enumerate(experts):
            (apart.setdefault(name, []) if name in served.rollouts else others).append(at)
        names = [pinned(experts[at]) for at in others]
        found = self._run(served.residents, rows, others, names) if others else {}
        for name, asked in apart.items():
            found.update(self._rolled_out(served, served.rollouts[name], rows, asked, keys))
        return [found[at] for at in range(len(rows))]

    def status(self, rollouts: Mapping[str, Rollout]) -> dict[str, Any]:
        """The counts of each name that has a candidate."""
        return {name: self._counts_of(one).to_json() for name, one in rollouts.items()}

    def _counts_of(self, rollout: Rollout) -> RolloutCounts:
        counts = self._counts.get(rollout.name)
        if counts is None or not counts.continues(rollout):
            counts = RolloutCounts(rollout)
            self._counts[rollout.name] = counts
        counts.rollout = rollout  # its weight may be another
        return counts

    def _rolled_out(
        self,
        served: Serving,
        rollout: Rollout,
        rows: Sequence[Row],
        asked: Sequence[int],
        keys: Sequence[bytes],
    ) -> Found:
        """The answers to the rows of one name that has a candidate."""
        counts, residents = self._counts_of(rollout), served.residents
        roles = {at: rollout.role(keys[at] or content_key(rows[at])) for at in asked}
        by_canary = [at for at in asked if roles[at] == "canary"]
        found = self._timed(residents, rollout, rows, by_canary, "canary", counts.canary)
        # The stable version answers where the canary cannot: no client pays for a bad candidate.
        failed = [at for at, answer in found.items() if isinstance(answer, AnswerError)]
        by_stable = [at for at in asked if roles[at] == "stable"]
        found.update(self._timed(residents, rollout, rows, by_stable, "stable", counts.stable))
        if failed:
            found.update(self._run(residents, rows, failed, [rollout.name] * len(failed)))
        if rollout.shadow is not None:
            others = self._timed(residents, rollout, rows, by_stable, "shadow", counts.shadow)
            for at, other in others.items():
                counts.compare(rows[at], found[at], other)
        return found

    def _timed(
        self,
        residents: Residents,
        rollout: Rollout,
        rows: Sequence[Row],
        asked: Sequence[int],
        role: Role,
        counts: VersionCounts,
    ) -> Found:
        """The answers of one version, counted."""
        if not asked:
            return {}
        started = time.perf_counter()
        name = pinned(pin(rollout.name, role))
        found = self._run(residents, rows, asked, [name] * len(asked))
        counts.add(list(found.values()), ms=(time.perf_counter() - started) * 1000)
        return found

    def _run(
        self,
        residents: Residents,
        rows: Sequence[Row],
        asked: Sequence[int],
        names: Sequence[str],
    ) -> Found:
        answers = self._bank.run(residents, [rows[at] for at in asked], names)
        return dict(zip(asked, answers, strict=True))
