"""Files from anywhere, read with bounds. Every fault is an `ExpertError` of one line.

A server follows files that other processes write. None of them may stop the server: a FIFO blocks
its reader for ever, a device never ends, and a huge or deeply nested file takes all memory.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pidep.errors import ExpertError

__all__ = ["MAX_JSON_BYTES", "MAX_TENSOR_BYTES", "parse_json", "read_file", "read_json"]

MAX_JSON_BYTES = 64 * 2**20
"""Most bytes of a JSON file. A record of thousands of experts or labels has a few megabytes."""
MAX_TENSOR_BYTES = 2**31
"""Most bytes of a tensor file or a graph; a graph's format has the same limit."""

# O_NONBLOCK: opening a FIFO returns at once. Windows has neither FIFOs nor the flag, and needs
# O_BINARY, because its text mode changes bytes.
_FLAGS = os.O_RDONLY
for _name in ("O_NONBLOCK", "O_CLOEXEC", "O_BINARY"):
    _FLAGS |= getattr(os, _name, 0)
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def read_file(
    path: Path, *, limit: int, head: tuple[int, Callable[[bytes, int], None]] | None = None
) -> bytes:
    """The bytes of a plain file, or of the plain file that a link leads to.

    Args:
        limit: most bytes of the file.
        head: a number of bytes, and a check that gets the file's first bytes, at most that many,
            and the file's size. It runs before the rest is read, and may raise.

    Raises:
        FileNotFoundError: nothing is there; the caller knows what that means.
        ExpertError: not a plain file, not readable, or of more than `limit` bytes.
    """
    try:
        handle = os.open(path, _FLAGS)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise ExpertError(f"{path}: not readable ({_reason(error)}); check the file") from error
    try:
        # The open file is checked, because a path can change between the check and the use.
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise ExpertError(
                f"{path}: expected a plain file, found {_kind(found.st_mode)}; remove it"
            )
        size = found.st_size
        if size > limit:
            raise ExpertError(
                f"{path}: has {size} bytes, expected at most {limit}; replace the file"
            )
        if head is not None:
            length, check = head
            check(_bytes_at(handle, min(length, size), path), size)
            # From the start again: joining two parts would need the memory twice.
            os.lseek(handle, 0, os.SEEK_SET)
        return _content(handle, size, path)
    finally:
        os.close(handle)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ExpertError: as `read_file`, absent, or not a JSON object.
    """
    try:
        data = read_file(path, limit=MAX_JSON_BYTES)
    except FileNotFoundError as error:
        raise ExpertError(
            f"{path}: no such file; expected an expert folder with {path.name} in it"
        ) from error
    try:
        value = parse_json(data)
    except ValueError as error:
        raise ExpertError(f"{path}: not readable as JSON ({error})") from error
    # Valid JSON may be a list or a number, on which every key would fail.
    if not isinstance(value, dict):
        raise ExpertError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def parse_json(data: bytes) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: not UTF-8, not JSON, nested too deeply, with half of a character (`\\ud83d`),
            with an integer of more than 64 bits, or with an object that has a key twice.
            NaN and 1e999 are numbers; the schema of the file refuses them by the key's name.
    """
    try:
        text = data.decode("utf-8")
        value = json.loads(text, parse_int=_integer, object_pairs_hook=_object)
        # An escape can name half of a character, which cannot be written to a file again. Few
        # files have escapes, so few are encoded for this check.
        if "\\ud" in text.lower():
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Readers differ in which of two values they take, so one could check what another does not use.
    value: dict[str, Any] = {}
    for key, one in pairs:
        if key in value:
            raise ValueError(f"key {key[:60]!r} is there twice")
        value[key] = one
    return value


def _integer(digits: str) -> int:
    # Python's own integers have no bound, and float(10**400) raises an error of its own kind.
    if len(digits) > 20 or not -(2**63) <= (value := int(digits)) < 2**63:
        raise ValueError(f"{digits[:20]}… has more than 64 bits")
    return value


def _content(handle: int, size: int, path: Path) -> bytes:
    """The whole file, which must be as long as it was when it was opened."""
    data = _bytes_at(handle, size, path)
    if len(data) < size or _bytes_at(handle, 1, path):
        raise ExpertError(f"{path}: changed while it was read; read it again")
    return data


def _bytes_at(handle: int, count: int, path: Path) -> bytes:
    """The next bytes; fewer where the file ends."""
    parts: list[bytes] = []
    try:
        # One call reads at most 2 GiB.
        while count and (part := os.read(handle, count)):
            parts.append(part)
            count -= len(part)
    except OSError as error:
        raise ExpertError(f"{path}: not readable ({_reason(error)}); check the disk") from error
    return b"".join(parts)


def _kind(mode: int) -> str:
    return next((name for is_kind, name in _KINDS if is_kind(mode)), "something else")


def _reason(error: Exception) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
