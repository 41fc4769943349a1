"""Several running servers of one store: a change is done when each of them answers by it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

from pidep.artifacts.manifest import Role
from pidep.errors import PidepError, ServingError, UnreachableError
from pidep.serving.client import Client, Request
from pidep.serving.rollout import pin, pinned
from pidep.serving.store import ExpertStore, Replaced

__all__ = ["Instances", "confirmed"]

_PROBE = "which expert answers?"
_POLL_S = 0.01


class Instances:
    """Connections to the servers; use as a context manager."""

    def __init__(self, urls: Sequence[str], *, timeout_s: float = 10.0) -> None:
        """Connect to each address, gRPC host:port.

        Raises:
            UsageError: an address is no host:port.
        """
        self.timeout_s = timeout_s
        self._stack = ExitStack()
        self._clients = {
            url: self._stack.enter_context(Client(url, timeout_s=timeout_s))
            for url in dict.fromkeys(urls)
        }

    def __enter__(self) -> Instances:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def status(self) -> dict[str, dict[str, Any]]:
        """Address to the server's status.

        Raises:
            ServingError: a server cannot be reached, or is of a release without a status.
        """
        return {url: client.status() for url, client in self._clients.items()}

    def require(self, name: str) -> None:
        """Fail where a server does not answer, before anything is changed.

        Raises:
            UnreachableError: nobody answers.
        """
        for client in self._clients.values():
            try:
                client.infer([Request(_PROBE, name)])
            except UnreachableError:
                raise
            except ServingError:
                continue  # an error is an answer: the name may be new

    def wait(self, done: Replaced) -> None:
        """Return when each server answers by the changed route.

        Raises:
            ServingError: servers that refuse a version, or do not answer by the route in time.
        """
        deadline = time.monotonic() + self.timeout_s
        left = dict.fromkeys(self._clients, "no answer")
        while left:
            for url in list(left):
                fault = _difference(self._clients[url], done)
                if not fault:
                    del left[url]
                    continue
                left[url] = fault
            if left and time.monotonic() > deadline:
                said = "; ".join(f"{url}: {fault}" for url, fault in left.items())
                raise ServingError(
                    f"{len(left)} of {len(self._clients)} servers did not follow revision "
                    f"{done.revision} within {self.timeout_s:g} s: {said}"
                )
            if left:
                time.sleep(_POLL_S)


def confirmed(
    store: ExpertStore, name: str, change: Callable[[], Replaced], *, instances: Instances | None
) -> Replaced:
    """Make a change, and return when every server answers by it; else undo the change.

    Args:
        instances: the servers; None changes the store alone.

    Raises:
        ServingError: the servers that did not follow, and what the name means now.
    """
    if instances is None:
        return change()
    instances.require(name)
    done = change()
    try:
        instances.wait(done)
    # Also on Ctrl-C: not every server has shown the new route.
    except BaseException as error:
        left = _put_back(store, done)
        if isinstance(error, ServingError):
            raise ServingError(f"{name!r}: {error}; {left}") from error
        raise
    return done


def _put_back(store: ExpertStore, done: Replaced) -> str:
    if not done.is_change:
        return "the store was so before"
    try:
        if store.put_back(done):
            return "the former route is back"
    except (PidepError, OSError) as error:
        return f"the store still has the new route ({error})"
    return "another process has changed the name meanwhile; it was left as it is"


def _difference(client: Client, done: Replaced) -> str:
    """How a server differs from the route; empty where it answers by the route."""
    name, route = done.alias, done.after
    try:
        status = client.status()
        if (status["revision"] or 0) < done.revision:
            fault = f" ({status['fault']})" if status.get("fault") else ""
            return f"it follows revision {status['revision']}{fault}"
        if route is None:
            return f"it still serves {name!r}" if name in status["served"] else ""
        for role, digest in route.digests.items():
            refused = status["refused"].get(pinned(pin(name, role)), {})
            if refused.get("digest") == digest:
                return f"it refuses {digest[:19]}…: {refused['reason']}"
            answer = client.infer([Request(_PROBE, _asked(name, role, "rollouts" in status))])[0]
            if answer.digest != digest:
                return f"{pin(name, role)} answers with {answer.digest[:19]}…"
    except (ServingError, KeyError) as error:
        return str(error)
    return ""


def _asked(name: str, role: Role, has_pins: bool) -> str:
    """A server of an older release knows plain names only, and follows routes of them only."""
    return pin(name, role) if has_pins else name
