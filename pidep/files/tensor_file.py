"""Safetensors and JSON from anywhere, read with bounds; every fault is one line."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from pidep.errors import ExpertError

__all__ = ["read_json", "read_tensors", "tensor_bytes"]

_MAX_HEADER_BYTES = 4 * 1024 * 1024


def tensor_bytes(
    tensors: Mapping[str, npt.NDArray[Any]], *, metadata: dict[str, str] | None = None
) -> bytes:
    """The bytes of a safetensors file.

    Arrays are made contiguous first: the package writes memory as it lies, and a transposed array
    would come back with other numbers.
    """
    return bytes(
        save_safetensors(
            {name: np.ascontiguousarray(array) for name, array in tensors.items()},
            metadata=metadata,
        )
    )


def read_tensors(path: Path) -> dict[str, npt.NDArray[Any]]:
    """A safetensors file as arrays. The header's size is checked before anything is parsed."""
    # A link could point anywhere, and a FIFO would block the reader for ever.
    if path.is_symlink() or not path.is_file():
        raise ExpertError(
            f"{path}: expected a plain safetensors file, found none; re-export or re-train the "
            "expert"
        )
    data = path.read_bytes()
    if len(data) < 8:
        raise ExpertError(
            f"{path}: truncated safetensors file ({len(data)} bytes, a header needs 8); copy or "
            "train it again"
        )
    (header_bytes,) = struct.unpack("<Q", data[:8])
    # The header is JSON of a size that the file itself claims. A wrong claim would parse gigabytes.
    if header_bytes > min(_MAX_HEADER_BYTES, len(data) - 8):
        raise ExpertError(
            f"{path}: safetensors header claims {header_bytes} bytes, the file has {len(data) - 8} "
            "after it "
            f"(at most {_MAX_HEADER_BYTES} allowed): truncated or not safetensors; copy or train "
            "it again"
        )
    try:
        return dict(load_safetensors(data))
    except (SafetensorError, ValueError, KeyError) as error:
        raise ExpertError(
            f"{path}: truncated or damaged safetensors file ({error}); copy or train it again"
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ExpertError(
            f"{path}: no such file; expected an expert folder with {path.name} in it"
        ) from error
    except (OSError, ValueError) as error:
        raise ExpertError(f"{path}: not readable as JSON ({error})") from error
    # Valid JSON may be a list or a number, on which every key would fail.
    if not isinstance(value, dict):
        raise ExpertError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value
