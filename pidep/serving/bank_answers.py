"""What a served bank answers: rows by routed experts, its own state, and late rows."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pidep.artifacts import names
from pidep.errors import PidepError
from pidep.runtime.answer import Answer
from pidep.runtime.bank import Bank
from pidep.serving.asked import Asked
from pidep.serving.batcher import Waiting, reply_to
from pidep.serving.late_answers import LateAnswers, needs_cold
from pidep.serving.metrics import Metrics
from pidep.serving.routed_bank import RoutedBank
from pidep.serving.store import ExpertStore
from pidep.serving.watcher import Serving, Watcher

__all__ = ["BankAnswers"]


class BankAnswers:
    """Follows the store from its making to `stop`, and answers batches meanwhile."""

    def __init__(self, bank: Bank, store: ExpertStore, metrics: Metrics) -> None:
        self._bank, self._metrics = bank, metrics
        self._routed = RoutedBank(bank)
        self._running = threading.Lock()
        """One batch at a time, be it of requests in time or of late ones."""
        self._counting = threading.Lock()
        self._noted: tuple[Any, ...] = ()
        self._watcher = Watcher(bank, store)
        self._watcher.start()
        self._late = LateAnswers(self._watcher, self.answers, shed=metrics.shed, done=self.count)
        self.count()

    @property
    def is_ready(self) -> bool:
        """Whether the store is being followed, and late requests are answered."""
        return self._watcher.is_alive and self._late.is_alive

    def answer(self, requests: Sequence[Waiting]) -> None:
        """Reply to a batch of requests, or later where their experts must be loaded first."""
        # Read once a batch: a swap never changes a running batch.
        serving = self._watcher.serving
        now: list[Waiting] = []
        for one in requests:
            if needs_cold(serving, one.asked):
                self._late.add(one)
            else:
                now.append(one)
        reply_to(now, partial(self.answers, serving))

    def answers(self, serving: Serving, asked: Sequence[Asked]) -> list[Answer | PidepError]:
        """An answer or an error for each row. A row of `@status` gets the server's state."""
        with self._running:
            started = time.perf_counter()
            others = [at for at, one in enumerate(asked) if one.expert != names.STATUS]
            found = self._routed.run(
                serving,
                [asked[at].row for at in others],
                experts=[asked[at].expert for at in others],
                keys=[asked[at].key for at in others],
            )
            if len(others) < len(asked):
                of_row = dict(zip(others, found, strict=True))
                rollouts = self._routed.status(serving.rollouts)
                state = _status(self._bank, {**self._watcher.status(), "rollouts": rollouts})
                found = [of_row.get(at, state) for at in range(len(asked))]
            seconds = time.perf_counter() - started
            self._metrics.batch([one.expert for one in asked], found, seconds=seconds)
        self._watcher.use([one.expert for one in asked])
        return found

    def stop(self) -> None:
        """Answer what waits, and stop following the store."""
        self._late.stop()
        self._watcher.stop()

    def count(self) -> None:
        """Pass on what was counted. After the replies: metrics are calls to the server."""
        with self._counting:
            self._metrics.count()
            self._note()

    def _note(self) -> None:
        """Set the gauges where the residents were replaced since they were last set."""
        counts, residents = self._watcher.counts, self._watcher.serving.residents
        state = (*astuple(counts), len(residents.refused), self._watcher.revision)
        if state == self._noted:
            return
        self._noted = state
        slots = {slot.number for one in residents.by_name.values() for slot in one.slots}
        self._metrics.residents(
            residents.digests,
            counted={
                "swaps": counts.swaps,
                "evictions": counts.evictions,
                "cold_loads": counts.cold_loads,
            },
            resident_bytes=len(slots) * self._bank.arena.bytes_per_slot,
            cold_experts=len(residents.cold),
            refused_versions=len(residents.refused),
            store_revision=self._watcher.revision or 0,
        )


def _memory_mib() -> float | None:
    """Resident memory of this process; None where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return None
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)


def _status(bank: Bank, state: Mapping[str, Any]) -> Answer:
    """The server's state, in the place of a label."""
    one = np.ones(1, np.float32)
    # The rows of a response have embeddings of one width.
    nowhere = np.zeros(bank.record.hidden_size, np.float32)
    entry = bank.record.entry_digest or ""
    label = json.dumps({**state, "entry": entry, "memory_mib": _memory_mib()})
    return Answer((label,), one, one, entry, nowhere)
