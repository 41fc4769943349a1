"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pidep.errors import UsageError, fault_of_path

__all__ = [
    "atomic_folder",
    "check_place",
    "fsync_folder",
    "in_place",
    "temporary_sibling",
    "write_bytes",
    "write_json",
    "write_text",
]

_AT_FDCWD = -100  # paths are relative to the working directory
_RENAME_EXCHANGE = 2
_FLUSHES = 8
"""Files that are flushed at a time."""


def check_place(folder: Path, what: str) -> None:
    """Refuse a folder that could not be made, before any work is done for it.

    Raises:
        UsageError: it is a file, lies below one, or has a name that no file can have.
    """
    if fault := fault_of_path(folder):
        raise UsageError(f"{what} {str(folder)!a}: {fault}")
    for path in (folder, *folder.parents):
        if path.exists():
            if not path.is_dir():
                below = "" if path == folder else f"lies below {path}, which "
                raise UsageError(f"{what} {folder}: {below}is a file; give a folder")
            return


def fsync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk, where the system can."""
    if os.name == "nt":
        return  # Windows opens no folder, and NTFS has a journal of its entries
    # A rename changes the folder, not the file. It survives a power cut only once the folder is
    # flushed.
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_bytes(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Write a file beside `path`, flush it, and rename it into place.

    Args:
        durable: False saves the flush; then a power cut may leave the file empty.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target: a rename is atomic within one file system only.
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            if durable:
                stream.flush()
                os.fsync(stream.fileno())
        # mkstemp makes files that only their owner can read; the server may run as another user.
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    if durable:
        fsync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """`write_bytes` of UTF-8 text."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """`write_bytes` of indented JSON with a final newline; NaN and Inf are refused."""
    # Python would write NaN, which is no JSON: other readers refuse the file.
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


@contextmanager
def temporary_sibling(target: Path) -> Iterator[Path]:
    """An empty folder beside `target` on the same file system; it is removed at the end."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    # mkdtemp makes folders that only their owner can enter; the server may run as another user.
    os.chmod(temporary, 0o755)
    try:
        yield temporary
    finally:
        _remove(temporary)


@contextmanager
def in_place(target: Path, new: Path) -> Iterator[None]:
    """Put the folder `new` in place of `target`, flushed to the disk first.

    An error inside the block restores both folders. After the block, the old content is gone.
    """
    # The content reaches the disk before the name does. Otherwise a power cut could leave a whole
    # name with half a content.
    _flush(new)
    old = _put(new, target)
    try:
        fsync_folder(target.parent)
        yield
    except BaseException:
        # A Ctrl-C inside the block must restore both folders as well.
        _take_back(old, target, new)
        raise
    if old is not None:
        _remove(old if old == new else old.parent)


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """A folder to fill; it replaces `target` on success and vanishes on error."""
    with temporary_sibling(target) as temporary:
        yield temporary
        with in_place(target, temporary):
            pass


def _put(new: Path, target: Path) -> Path | None:
    """Rename `new` to `target`.

    Gives the place of the old content, or None where there was none.
    """
    if not os.path.lexists(target):
        os.rename(new, target)
        return None
    # One step: a reader sees the old folder or the new one, never none.
    if _exchange(new, target):
        return new
    # Two renames. Between them `target` does not exist: if the second fails, the first is undone.
    aside = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.old.")) / target.name
    try:
        os.rename(target, aside)
        os.rename(new, target)
    except BaseException:
        if not os.path.lexists(target):
            os.rename(aside, target)
        aside.parent.rmdir()
        raise
    return aside


def _take_back(old: Path | None, target: Path, new: Path) -> None:
    """Undo `_put`."""
    if old == new:
        _exchange(new, target)
        return
    os.rename(target, new)
    if old is not None:
        os.rename(old, target)
        old.parent.rmdir()


def _exchange(one: Path, other: Path) -> bool:
    """Swap two paths in one step; False where the system or the file system cannot.

    The standard library has no call for it: `os.rename` refuses a folder that is not empty.
    """
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError, TypeError):  # not Linux, or an old C library
        return False
    done = renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE)
    return bool(done == 0)


def _flush(folder: Path) -> None:
    """Flush a folder and all below it to the disk."""
    with ThreadPoolExecutor(_FLUSHES) as threads:
        # Together: a file system with a journal then writes it once, and not once for each file.
        flushed = [
            threads.submit(flush, Path(root) / name)
            for root, _, names in os.walk(folder)
            for flush, name in [(fsync_folder, ""), *((_fsync_file, name) for name in names)]
        ]
        for one in flushed:
            one.result()


def _fsync_file(path: Path) -> None:
    with open(path, "rb") as stream:
        os.fsync(stream.fileno())


def _remove(path: Path) -> None:
    """Remove a folder, a file or a link. An error is ignored: leftovers do no harm."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
