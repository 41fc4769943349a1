"""The one folder where pidep keeps what it can fetch, draw or compute again."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["cache_folder", "locked"]


def cache_folder() -> Path:
    """`$PIDEP_CACHE`, else `$XDG_CACHE_HOME/pidep`, else `~/.cache/pidep`."""
    # An empty variable counts as unset, as the XDG specification says.
    if os.environ.get("PIDEP_CACHE"):
        return Path(os.environ["PIDEP_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pidep"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make the folder and hold its lock, so that only one of several processes fills it."""
    # Here: the server's process uses this room too, and has no such package.
    from filelock import FileLock

    folder.mkdir(parents=True, exist_ok=True)
    # The kernel frees the lock when the process ends, however it ends; a lock file alone would
    # stay.
    with FileLock(folder / ".lock"):
        yield
