"""`pidep swap --verify`: traffic of its own around a swap, and what became of every request."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np

from pidep.artifacts.bank import BankRecord
from pidep.artifacts.manifest import Manifest
from pidep.artifacts.names import BACKBONE, BANK, VERSION
from pidep.errors import PidepError, ServingError, UsageError
from pidep.experts.mixed import Served
from pidep.serving.client import Client, Request
from pidep.serving.swap import Swapped, swap_expert

__all__ = ["Phase", "SwapProof", "prove_swap"]

PhaseName: TypeAlias = Literal["before", "during", "after"]

_TEXT = "which expert answers?"
_OTHERS = 7
"""Other names that are asked, too: a swap must not disturb them."""
_SHOWN = 3
"""Errors that a message shows."""


@dataclass(frozen=True)
class Phase:
    """The requests that were sent in one phase."""

    sent: int
    lost: int
    p50_ms: float
    p99_ms: float
    digests: dict[str, int]
    """Version to the answers of the swapped name that it gave."""


@dataclass(frozen=True)
class SwapProof:
    """A swap, and what its traffic met."""

    swapped: Swapped
    phases: dict[PhaseName, Phase]
    """`before` the publication; `during` it, to the first new answer; `after` that."""
    other_versions: int
    """Answers by a version that the name did not mean when the request was sent."""
    errors: tuple[str, ...]
    """Of the lost requests, each message once."""
    memory_mib: tuple[float | None, float | None]
    """Resident memory of the model's process, before and after; None where it does not say."""

    @property
    def lost(self) -> int:
        """Requests without an answer."""
        return sum(one.lost for one in self.phases.values())

    @property
    def sent(self) -> int:
        """All requests."""
        return sum(one.sent for one in self.phases.values())

    def require_clean(self) -> None:
        """Fail where the swap cost a client anything.

        Raises:
            ServingError: a request was lost, or answered by a version that its name did not mean.
        """
        if not self.lost and not self.other_versions:
            return
        shown = f": {'; '.join(self.errors[:_SHOWN])}" if self.errors else ""
        raise ServingError(
            f"swap {self.swapped.name!r}: of {self.sent} requests {self.lost} were lost and "
            f"{self.other_versions} answered by another version{shown}; the new version serves"
        )

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            **self.swapped.to_json(),
            "sent": self.sent,
            "lost": self.lost,
            "other_versions": self.other_versions,
            "errors": list(self.errors),
            "phases": {name: asdict(one) for name, one in self.phases.items()},
            "memory_mib": list(self.memory_mib),
        }


class _Sent(NamedTuple):
    name: str
    at: float
    done: float
    digest: str
    error: str


def prove_swap(
    name: str,
    expert: Served,
    repo: Path,
    url: str,
    *,
    clients: int = 4,
    seconds: float = 3.0,
    timeout_s: float = 10.0,
    allow_new_labels: bool = False,
) -> SwapProof:
    """Swap an expert under traffic of its own.

    Args:
        clients: connections that ask at the same time; each sends nothing a second time.
        seconds: of traffic before the swap, and again after it.

    Raises:
        PidepError: as `swap_expert`. What the traffic met is in the result.
    """
    if clients < 1 or seconds <= 0:
        raise UsageError(f"expected clients and seconds above 0, found {clients} and {seconds:g}")
    version = repo / BANK / VERSION
    store = BankRecord.read(version).store(version)
    before = Manifest.read(store)
    with Client(url, timeout_s=timeout_s) as client:
        memory = _memory(client)
        served = sorted(one for one in client.status()["served"] if "@" not in one)
        others = [one for one in served if one != name][:_OTHERS]
        # A new name has no answer before the swap.
        names = [name] * (name in served) + (others or [BACKBONE])
        traffic = _Traffic(url, names, clients=clients, timeout_s=timeout_s)
        try:
            time.sleep(seconds)
            started = time.monotonic()
            swapped = swap_expert(
                name, expert, repo, url, timeout_s=timeout_s, allow_new_labels=allow_new_labels
            )
            ended = time.monotonic()
            time.sleep(seconds)
        finally:
            sent = traffic.stop()
        memory_after = _memory(client)
    return _proof(
        swapped,
        sent,
        (started, ended),
        meant=(_versions(before, name), _versions(Manifest.read(store), name)),
        memory=(memory, memory_after),
    )


def _proof(
    swapped: Swapped,
    sent: Sequence[_Sent],
    swap: tuple[float, float],
    *,
    meant: tuple[set[str], set[str]],
    memory: tuple[float | None, float | None],
) -> SwapProof:
    started, ended = swap
    old, new = meant
    phases: dict[PhaseName, list[_Sent]] = {"before": [], "during": [], "after": []}
    others = 0
    for one in sent:
        # By the time of sending: a request of `before` may meet the new version.
        phase: PhaseName = "before" if one.at < started else "during" if one.at < ended else "after"
        phases[phase].append(one)
        if one.name == swapped.name and not one.error:
            may = new if phase == "after" else old if one.done < started else old | new
            others += one.digest not in may
    return SwapProof(
        swapped,
        {phase: _phase(swapped.name, some) for phase, some in phases.items()},
        others,
        tuple(dict.fromkeys(one.error for one in sent if one.error)),
        memory,
    )


def _phase(name: str, sent: Sequence[_Sent]) -> Phase:
    ms = [1e3 * (one.done - one.at) for one in sent if not one.error] or [0.0]
    digests = Counter(one.digest for one in sent if one.name == name and not one.error)
    return Phase(
        len(sent),
        sum(bool(one.error) for one in sent),
        round(float(np.percentile(ms, 50)), 3),
        round(float(np.percentile(ms, 99)), 3),
        dict(digests),
    )


def _versions(manifest: Manifest, name: str) -> set[str]:
    """What may answer under a name."""
    route = manifest.routes.get(name)
    if route is None:
        return set()
    return {route.stable, *([route.canary.digest] if route.canary else [])}


def _memory(client: Client) -> float | None:
    try:
        found = client.status().get("memory_mib")
    except PidepError:
        return None
    return None if found is None else float(found)


class _Traffic:
    """Clients that ask one name after the other, until they are stopped."""

    def __init__(self, url: str, names: Sequence[str], *, clients: int, timeout_s: float) -> None:
        self._stop = threading.Event()
        self._sent: list[_Sent] = []
        works: list[Callable[[], None]] = [
            lambda at=at: self._ask(url, names, at, timeout_s)  # type: ignore[misc]
            for at in range(clients)
        ]
        self._threads = [threading.Thread(target=work, daemon=True) for work in works]
        for one in self._threads:
            one.start()

    def stop(self) -> list[_Sent]:
        """End the clients, each after its last answer; every request that was sent."""
        self._stop.set()
        for one in self._threads:
            one.join()
        return sorted(self._sent, key=lambda one: one.at)

    def _ask(self, url: str, names: Sequence[str], first: int, timeout_s: float) -> None:
        with Client(url, timeout_s=timeout_s, retries=0) as client:
            at = first
            while not self._stop.is_set():
                # Every second request asks the first name, which is swapped.
                name = names[0] if at % 2 else names[(at // 2) % len(names)]
                started, digest, error = time.monotonic(), "", ""
                try:
                    digest = client.infer([Request(_TEXT, name)])[0].digest
                except PidepError as failed:
                    error = " ".join(str(failed).split())[:200]
                self._sent.append(_Sent(name, started, time.monotonic(), digest, error))
                at += 1
                if error:
                    time.sleep(0.05)  # a server that is gone would be asked without a pause
