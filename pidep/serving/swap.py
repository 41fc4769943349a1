"""`pidep swap` as a function: check, publish, wait for an answer with the new digest."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pidep.artifacts.bank import BankRecord
from pidep.artifacts.names import BANK, VERSION
from pidep.errors import ServingError
from pidep.experts.folder import Expert
from pidep.runtime.fit import check_expert
from pidep.serving.client import Client, Request
from pidep.serving.store import ExpertStore

__all__ = ["Swapped", "publish_expert", "swap_expert"]


_PROBE = "which expert answers?"
_POLL_S = 0.002


@dataclass(frozen=True)
class Swapped:
    """What a swap did."""

    name: str
    old_digest: str | None
    """None where the name was not served before."""
    new_digest: str
    seconds: float
    """From the call to the first answer of the new version."""

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


def publish_expert(name: str, expert: Expert, repo: Path) -> tuple[str | None, str]:
    """Put an expert that fits into the store of a repository's bank; (old digest, new digest).

    Raises:
        ExpertError: the bank cannot hold it; the store is unchanged.
        ServingError: the repository has no bank.
    """
    version = repo / BANK / VERSION
    record = BankRecord.read(version)
    # The server would refuse it too, but only in its log, after the manifest has changed.
    check_expert(record, expert)
    store = ExpertStore(record.store(version))
    old = store.manifest().aliases.get(name)
    return old, store.publish(expert, name)


def swap_expert(
    name: str, expert: Expert, repo: Path, url: str, *, timeout_s: float = 10.0
) -> Swapped:
    """Publish, and wait for an answer that carries the new digest.

    The server's own answer is the only evidence: a status of 200 or a line in its log proves
    nothing, both come before the new version serves.

    Args:
        name: served name.
        repo: the model repository that the server at `url` serves.
        url: gRPC host:port.

    Raises:
        ExpertError: the bank cannot hold the expert; the store is unchanged.
        ServingError: the server cannot be reached, or did not answer with the new digest in time.
    """
    started = time.monotonic()
    with Client(url, timeout_s=timeout_s) as client:
        # Asked first: a version that nobody serves should not wait in the store.
        _require_server(client, name)
        old, new = publish_expert(name, expert, repo)
        last = "no answer"
        while time.monotonic() - started < timeout_s:
            try:
                last = client.infer([Request(_PROBE, name)])[0].digest
                if last == new:
                    return Swapped(name, old, new, round(time.monotonic() - started, 4))
            except ServingError as error:
                last = str(error)
            time.sleep(_POLL_S)
    raise ServingError(
        f"swap {name!r}: published {new[:19]}… but after {timeout_s:g} s the server answered "
        f"{last[:120]}; is it serving this repository? See its log"
    )


def _require_server(client: Client, name: str) -> None:
    """Fail where nobody listens, before anything is published. The expert may be unknown yet."""
    try:
        client.infer([Request(_PROBE, name)])
    except ServingError as error:
        if "unknown expert" not in str(error):
            raise
