"""`pidep swap` as a function: check, publish, wait for an answer with the new digest."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pidep.artifacts.bank import BankRecord
from pidep.artifacts.names import BANK, VERSION
from pidep.errors import PidepError, ServingError, UnreachableError
from pidep.experts.mixed import Served
from pidep.runtime.fit import check_served
from pidep.serving.client import Client, Request
from pidep.serving.rollout import pin
from pidep.serving.store import ExpertStore, Replaced

__all__ = ["Swapped", "swap_expert"]


_PROBE = "which expert answers?"
_POLL_S = 0.002
_ASK_STATUS_S = 0.1


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


def swap_expert(
    name: str,
    expert: Served,
    repo: Path,
    url: str,
    *,
    timeout_s: float = 10.0,
    allow_new_labels: bool = False,
) -> Swapped:
    """Publish, and wait for an answer that carries the new digest.

    The server's own answer is the only evidence: a status of 200 or a line in its log proves
    nothing, both come before the new version serves. Without that evidence, the name is given its
    old version again.

    Args:
        name: served name.
        expert: an expert, or a mixture by reference, whose parts are published with it.
        repo: the model repository that the server at `url` serves.
        url: gRPC host:port.
        allow_new_labels: whether the name may get other labels or another template.

    Raises:
        ExpertError: the bank cannot hold the expert, or `name` would mean something else; the store
            is unchanged.
        ServingError: the server cannot be reached, refuses the version, or did not answer with
            the new digest in time.
    """
    started = time.monotonic()
    store = _store_for(expert, repo)
    with Client(url, timeout_s=timeout_s) as client:
        # Asked first: a version that nobody serves should not wait in the store.
        _require_server(client, name)
        done = store.publish(expert, name, allow_new_labels=allow_new_labels, action="swap")
        try:
            _wait_for(client, done, started=started, timeout_s=timeout_s)
        # Also on Ctrl-C: no answer has shown the new version yet.
        except BaseException as error:
            left = _put_back(store, done)
            if isinstance(error, ServingError):
                raise ServingError(f"swap {name!r}: {error}; {left}") from error
            raise
    return Swapped(name, done.old, done.new, round(time.monotonic() - started, 4))


def _store_for(expert: Served, repo: Path) -> ExpertStore:
    """The store of the repository's bank, which can hold the expert; raises as `swap_expert`."""
    version = repo / BANK / VERSION
    record = BankRecord.read(version)
    check_served(record, expert)
    return ExpertStore(record.store(version))


def _require_server(client: Client, name: str) -> None:
    """Fail where nobody answers, before anything is published.

    An error is an answer, too: the expert may be unknown yet, or so bad that it must be replaced.
    """
    try:
        client.infer([Request(_PROBE, name)])
    except UnreachableError:
        raise
    except ServingError:
        return


def _wait_for(client: Client, done: Replaced, *, started: float, timeout_s: float) -> None:
    """Return when the server answers with the new version.

    Raises:
        ServingError: it refuses the version, or does not answer with it in time.
    """
    last, asked_at = "no answer", time.monotonic()
    # A canary would answer the probe row always or never.
    has_canary = done.after is not None and done.after.canary is not None
    asked = pin(done.alias, "stable") if has_canary else done.alias
    while time.monotonic() < started + timeout_s:
        try:
            last = client.infer([Request(_PROBE, asked)])[0].digest
        except ServingError as error:
            last = str(error)
        if last == done.new:
            return
        # A refused version leaves the old one serving, so answers alone would not tell.
        if time.monotonic() - asked_at > _ASK_STATUS_S:
            _require_not_refused(client, done)
            asked_at = time.monotonic()
        time.sleep(_POLL_S)
    raise ServingError(
        f"published {done.new[:19]}… but after {timeout_s:g} s the server answered "
        f"{last[:120]}; is it serving this repository? See its log"
    )


def _require_not_refused(client: Client, done: Replaced) -> None:
    try:
        refused = client.status()["refused"].get(done.alias, {})
    except PidepError:
        return  # a server of an older release has no status
    if refused.get("digest") == done.new:
        raise ServingError(f"the server refuses {done.new[:19]}…: {refused['reason']}")


def _put_back(store: ExpertStore, done: Replaced) -> str:
    """Undo the publication; what the name means now, in words."""
    before = "is not served" if done.old is None else f"is {done.old[:19]}… again"
    try:
        if store.put_back(done):
            return f"{done.alias!r} {before}"
    except (PidepError, OSError) as error:
        return f"{done.alias!r} still names the new version ({error})"
    return f"another process has changed {done.alias!r} meanwhile; it was left as it is"
