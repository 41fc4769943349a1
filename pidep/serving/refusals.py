"""Versions that a server could not load: why, and when each is tried again."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pidep.errors import ExpertError
from pidep.serving.store import ExpertStore

__all__ = ["Refusals", "path_stamp"]

_FIRST_DELAY_S = 0.5
_LONGEST_DELAY_S = 30.0
_log = logging.getLogger(__name__)


def path_stamp(path: Path) -> tuple[int, ...]:
    """Changes when a file or folder is replaced; empty where there is none."""
    try:
        stat = path.stat()
    except (OSError, ValueError):
        return ()
    return (stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size)


@dataclass(frozen=True)
class _Refusal:
    digest: str
    reason: str
    stamp: tuple[int, ...]
    delay_s: float
    retry_at: float


class Refusals:
    """Names whose version was refused.

    A refused version is tried again when its folder is replaced, and after a delay that doubles
    up to half a minute: its files may be repaired in place, or the disk may answer again.
    """

    def __init__(self, store: ExpertStore, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._clock = clock
        self._by_name: dict[str, _Refusal] = {}

    def add(self, name: str, digest: str, error: BaseException) -> None:
        """Refuse the version of a name. A new reason is logged, a repeated one is not."""
        before = self._by_name.get(name)
        again = before is not None and before.digest == digest
        delay = min(before.delay_s * 2, _LONGEST_DELAY_S) if before and again else _FIRST_DELAY_S
        # Clients see the reason, so it must not show the store's path.
        text = " ".join(str(error).replace(f"{self._store.folder}/", "").split())
        reason = text[:300] or type(error).__name__
        if before is None or (before.digest, before.reason) != (digest, reason):
            _log.error(
                "%s: version %s… is refused: %s",
                name,
                digest[:19],
                reason,
                extra={"expert": name, "version": digest},
            )
        self._by_name[name] = _Refusal(
            digest, reason, self._stamp(digest), delay, self._clock() + delay
        )

    def remove(self, name: str) -> None:
        """The name's version is served now."""
        self._by_name.pop(name, None)

    def keep(self, aliases: Mapping[str, str]) -> None:
        """Forget the refusals of versions that the manifest does not name any more."""
        self._by_name = {
            name: found
            for name, found in self._by_name.items()
            if aliases.get(name) == found.digest
        }

    def refuses(self, name: str, digest: str) -> bool:
        """Whether this version of the name is refused."""
        found = self._by_name.get(name)
        return found is not None and found.digest == digest

    def waiting(self, name: str) -> bool:
        """Whether the name's version was refused, and it is too early to try it again."""
        found = self._by_name.get(name)
        return found is not None and not self._is_due(found)

    def due(self) -> bool:
        """Whether a version should be tried again."""
        return any(map(self._is_due, self._by_name.values()))

    def reasons(self) -> dict[str, dict[str, str]]:
        """Name to the refused digest and the reason."""
        return {
            name: {"digest": found.digest, "reason": found.reason}
            for name, found in sorted(self._by_name.items())
        }

    def _is_due(self, found: _Refusal) -> bool:
        return self._clock() >= found.retry_at or self._stamp(found.digest) != found.stamp

    def _stamp(self, digest: str) -> tuple[int, ...]:
        try:
            return path_stamp(self._store.version(digest))
        except ExpertError:  # it is no digest, so nothing on the disk can heal it
            return ()
