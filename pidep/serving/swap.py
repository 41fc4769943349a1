"""`pidep swap` as a function: check, publish, and return only when the server answers with the new digest."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pidep.errors import ServingError
from pidep.experts.folder import Expert
from pidep.runtime.bank import BankSpec
from pidep.serving.client import BANK, Client, Request
from pidep.serving.store import ExpertStore

__all__ = ["Swapped", "publish", "swap"]


_PROBE = "which expert answers?"


@dataclass(frozen=True)
class Swapped:
    """What a swap did."""

    name: str
    old_digest: str | None
    new_digest: str
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


def publish(name: str, expert: Expert, repo: Path) -> tuple[str | None, str]:
    """Put an expert into the store of a repository's bank; (old digest, new digest).

    Raises:
        ExpertError: the bank cannot hold it; the store is unchanged.
    """
    spec = BankSpec.read(repo / BANK / "1")
    spec.check(expert)
    store = ExpertStore(spec.store)
    old = store.manifest().aliases.get(name)
    return old, store.publish(expert, name)


def swap(name: str, expert: Expert, repo: Path, url: str, *, timeout_s: float = 10.0) -> Swapped:
    """Publish and wait for the server's own answer; an HTTP 200 or a log line proves nothing.

    Raises:
        ExpertError: the bank cannot hold the expert; the store is unchanged.
        ServingError: the server cannot be reached, or did not answer with the new digest in time.
    """
    started = time.monotonic()
    with Client(url, timeout_s=timeout_s) as client:
        _require_server(client, name)
        old, new = publish(name, expert, repo)
        last = "no answer"
        while time.monotonic() - started < timeout_s:
            try:
                last = client.infer([Request(_PROBE, name)])[0].digest
                if last == new:
                    return Swapped(name, old, new, round(time.monotonic() - started, 4))
            except ServingError as error:
                last = str(error)
            time.sleep(0.002)
    raise ServingError(
        f"swap {name!r}: published {new[:19]}… but after {timeout_s:g} s the server answered {last[:120]}; "
        "is it serving this repository? See its log"
    )


def _require_server(client: Client, name: str) -> None:
    """Find out before publishing that nobody listens; an unknown expert is fine, it may be new."""
    try:
        client.infer([Request(_PROBE, name)])
    except ServingError as error:
        if "unknown expert" not in str(error):
            raise
