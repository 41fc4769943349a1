"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pidep.errors import UsageError

__all__ = ["atomic_folder", "check_place", "fsync_folder", "write_bytes", "write_json", "write_text"]


def check_place(folder: Path, what: str) -> None:
    """Refuse a folder that could not be made, before any work is done for it.

    Raises:
        UsageError: it is a file, or lies below one.
    """
    for path in (folder, *folder.parents):
        if path.exists():
            if not path.is_dir():
                below = "" if path == folder else f"lies below {path}, which "
                raise UsageError(f"{what} {folder}: {below}is a file; give a folder")
            return


def fsync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_bytes(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Write a file beside `path`, flush it, and rename it into place; not `durable`, a power cut may leave it empty."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            if durable:
                stream.flush()
                os.fsync(stream.fileno())
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
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Fill a temporary sibling of `target`; on success it replaces `target`, on error it vanishes."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        yield temporary
        for root, _, names in os.walk(temporary):
            for name in names:
                with open(Path(root) / name, "rb") as stream:
                    os.fsync(stream.fileno())
            fsync_folder(Path(root))
        os.chmod(temporary, 0o755)
        if target.exists():
            old = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.old."))
            os.replace(target, old / "was")
            os.replace(temporary, target)
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.replace(temporary, target)
        fsync_folder(target.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
