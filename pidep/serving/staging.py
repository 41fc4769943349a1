"""The folder in which a server runs: backends, links and its log; removed when it has ended."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from pidep.errors import ServingError

__all__ = ["StagingFolder", "is_plain"]

_PREFIX, _LOCK = "pidep-triton-", "lock"
_SHARED_MEMORY = Path("/dev/shm")
_PLAIN = re.compile(r"[\w./-]+", re.ASCII)


def is_plain(path: str) -> bool:
    """Whether Triton Server's stub understands a path.

    A shell splits the stub's command line at spaces, and the stub decodes it as ASCII.
    """
    return _PLAIN.fullmatch(path) is not None


class StagingFolder:
    """A temporary folder, locked as long as its server may run."""

    def __init__(self) -> None:
        """Make the folder; remove those that killed processes left behind.

        Raises:
            ServingError: there is no temporary folder whose path Triton Server can read.
        """
        parent = _parent([tempfile.gettempdir(), "/tmp", "/var/tmp"])
        _sweep(parent)
        self.path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        self._lock = _locked(self.path)

    def plain(self, repo: Path) -> Path:
        """The path of a model repository as Triton Server can read it: itself, or a link to it."""
        if is_plain(str(repo)):
            return repo
        link = self.path / "models"
        link.symlink_to(repo)
        return link

    def remove(self) -> None:
        """Remove the folder, and shared memory that the server left."""
        _remove(self.path)
        self._lock.close()


def _parent(candidates: Sequence[str]) -> Path:
    for folder in map(Path, candidates):
        if is_plain(str(folder)) and folder.is_dir():
            return folder
    raise ServingError(
        f"temporary folder {candidates[0]!r}: Triton Server reads ASCII paths without spaces only; "
        "set TMPDIR to another folder"
    )


def _sweep(parent: Path) -> None:
    """Remove the folders of killed processes: nobody holds their lock any more.

    A lock also tells of a process in another container, where a process id would not.
    """
    import fcntl  # As in `_locked`.

    for folder in parent.glob(f"{_PREFIX}*"):
        with suppress(OSError), open(folder / _LOCK, "rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(folder)


def _locked(folder: Path) -> IO[bytes]:
    """The lock of a new folder, held until it is closed or this process ends."""
    import fcntl  # Here, because Windows has none: pidep is imported there, too.

    # Locked under another name first: nobody may find the lock before it is held.
    lock = open(folder / f"new-{_LOCK}", "xb")  # noqa: SIM115
    fcntl.flock(lock, fcntl.LOCK_EX)
    (folder / f"new-{_LOCK}").rename(folder / _LOCK)
    return lock


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    # A server that does not end in time leaves the memory that it shared with its stubs.
    for region in _SHARED_MEMORY.glob(f"{folder.name}-*"):
        region.unlink(missing_ok=True)
