"""The history of a store's names: who changed what, and which stable versions came before.

A change is written into the history first and into the manifest last. So a change that a crash cut
off is an entry whose revision the manifest has not reached; readers leave such an entry out.
"""

from __future__ import annotations

import getpass
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path

from pidep.artifacts.manifest import Manifest
from pidep.artifacts.names import HISTORY
from pidep.artifacts.route_history import Action, Change, RouteHistory
from pidep.errors import ServingError
from pidep.files.atomic_write import write_bytes

__all__ = ["changes_of", "histories", "recorded", "stable_versions"]

_MOST = 50
"""Entries that a name keeps."""
_log = logging.getLogger(__name__)


@contextmanager
def recorded(store: Path, before: Manifest, after: Manifest, action: Action) -> Iterator[None]:
    """Record what differs between two manifests; the block writes the second one.

    An error of the block takes the new entries out again.
    """
    old, new = before.routes, after.routes
    changed = sorted(name for name in {*old, *new} if old.get(name) != new.get(name))
    at = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    by = _who()
    files: dict[Path, bytes | None] = {}
    try:
        for name in changed:
            change = Change(
                revision=after.revision,
                at=at,
                by=by,
                action=action,
                before=old.get(name),
                after=new.get(name),
            )
            path = RouteHistory.path(store, name)
            files[path] = path.read_bytes() if path.exists() else None
            entries = (*_lenient(store, name, before), change)[-_MOST:]
            RouteHistory(name=name, entries=entries).write(store)
        yield
    except BaseException:
        for path, content in files.items():
            _put_back(path, content)
        raise


def changes_of(store: Path, name: str, manifest: Manifest) -> tuple[Change, ...]:
    """The changes of a name that led to a manifest, oldest first.

    Raises:
        ServingError: the history is damaged.
    """
    return _reached(RouteHistory.read(store, name).entries, name, manifest)


def histories(store: Path, manifest: Manifest) -> dict[str, tuple[Change, ...]]:
    """`changes_of` every name that has a history, also of names that are not served any more."""
    names = sorted(path.stem for path in (store / HISTORY).glob("[!.]*.json"))
    return {name: changes_of(store, name, manifest) for name in names}


def stable_versions(changes: tuple[Change, ...], current: str | None) -> list[str]:
    """The stable versions to which a name can go back, oldest first; the last one is current.

    A rollback drops the versions that it leaves: they are not candidates of the next one.

    Args:
        current: the stable version now; None where the name is not served.
    """
    found: list[str] = []
    for change in changes:
        if not found and change.before is not None:
            found.append(change.before.stable)
        if change.after is None or (found and found[-1] == change.after.stable):
            continue
        if change.action in ("rollback", "undo") and change.after.stable in found:
            del found[len(found) - found[::-1].index(change.after.stable) :]
        else:
            found.append(change.after.stable)
    # A release without histories may have changed the name meanwhile.
    if current is not None and (not found or found[-1] != current):
        found.append(current)
    return found


def _lenient(store: Path, name: str, manifest: Manifest) -> tuple[Change, ...]:
    """As `changes_of`; a damaged history must not keep a good version from being published."""
    try:
        return changes_of(store, name, manifest)
    except ServingError as error:
        _log.warning("%s; it begins anew", error)
        return ()


def _reached(entries: tuple[Change, ...], name: str, manifest: Manifest) -> tuple[Change, ...]:
    """The entries without those of changes that a crash cut off."""
    found = [one for one in entries if one.revision <= manifest.revision]
    # Another release, which writes no history, may have reached the revision of such a change.
    if (
        found
        and found[-1].revision == manifest.revision
        and found[-1].after != manifest.routes.get(name)
    ):
        found.pop()
    return tuple(found)


def _put_back(path: Path, content: bytes | None) -> None:
    try:
        if content is None:
            path.unlink(missing_ok=True)
        else:
            write_bytes(path, content)
    except OSError as error:
        # The disk may be full. Readers leave the entry out: the manifest has not its revision.
        _log.warning("%s: an unfinished change stays in it (%s)", path, error.strerror)


def _who() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container has users without a name
        user = f"uid {os.getuid()}"
    return f"{user}@{socket.gethostname()}"
