"""Cache files: safetensors with a SHA-256 of their own.

A file that is damaged, or was written for another key, reads as absent.
"""

from __future__ import annotations

import hashlib
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pidep.errors import ExpertError
from pidep.files.atomic_write import write_bytes
from pidep.files.tensor_file import read_tensors, tensor_bytes

__all__ = ["read_cached", "write_cached"]

_CHECKSUM = "sha256"
_log = logging.getLogger(__name__)


def read_cached(path: Path, *, key: str) -> dict[str, npt.NDArray[Any]] | None:
    """The tensors written for `key`; None if the file is absent, damaged, or for another key."""
    try:
        # No bound: pidep wrote the file itself, and features of many images are large.
        tensors = read_tensors(path, limit=sys.maxsize)
    # A cache is allowed to fail: the caller computes the tensors again.
    except (ExpertError, OSError):
        return None
    # The checksum covers the key: a file that was renamed or copied belongs to no other key.
    found = tensors.pop(_CHECKSUM, None)
    return tensors if found is not None and found.tobytes() == _digest(tensors, key) else None


def write_cached(path: Path, tensors: Mapping[str, npt.NDArray[Any]], *, key: str) -> None:
    """Write a cache file, whole or not at all.

    A failure is logged: it costs time, not the result.
    """
    checksum = np.frombuffer(_digest(tensors, key), np.uint8)
    try:
        write_bytes(path, tensor_bytes({**tensors, _CHECKSUM: checksum}))
    except OSError as error:
        _log.warning("%s: not cached (%s)", path, error)


def _digest(tensors: Mapping[str, npt.NDArray[Any]], key: str) -> bytes:
    sha = hashlib.sha256(key.encode())
    # Sorted, with dtype and shape: equal bytes of another shape are another content.
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name])
        sha.update(f"\n{name} {array.dtype.str} {array.shape} ".encode())
        sha.update(array.data)
    return sha.digest()
