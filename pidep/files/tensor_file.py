"""Safetensors from anywhere, read with bounds; every fault is one line."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save as save_safetensors

from pidep.errors import ExpertError
from pidep.files.bounded_read import MAX_TENSOR_BYTES, parse_json, read_file

__all__ = ["read_tensors", "tensor_bytes"]

_MAX_HEADER_BYTES = 4 * 1024 * 1024
_DTYPES = {
    **{"F64": np.float64, "F32": np.float32, "F16": np.float16, "BOOL": np.bool_},
    **{"I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8},
    **{"U64": np.uint64, "U32": np.uint32, "U16": np.uint16, "U8": np.uint8},
}
"""numpy's types by safetensors' names; BF16 is widened."""


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


def read_tensors(path: Path, *, limit: int = MAX_TENSOR_BYTES) -> dict[str, npt.NDArray[Any]]:
    """A safetensors file as arrays; BF16 is widened to fp32, which is exact.

    The header's size is checked before anything is parsed.

    Args:
        limit: most bytes of the file.

    Raises:
        ExpertError: absent, not a plain file, too large, truncated or damaged.
    """
    try:
        data = read_file(path, limit=limit, head=(8, lambda first, size: _check(first, size, path)))
        views = deserialize(data)  # type: ignore[no-untyped-call]
        # That reader takes the last of two tensors of one name, and others take the first.
        (header_bytes,) = struct.unpack("<Q", data[:8])
        parse_json(data[8 : 8 + header_bytes])
        return {name: _array(name, view) for name, view in views}
    except FileNotFoundError as error:
        raise ExpertError(
            f"{path}: expected a safetensors file, found none; re-export or re-train the expert"
        ) from error
    except (SafetensorError, ValueError, KeyError) as error:
        raise ExpertError(
            f"{path}: truncated or damaged safetensors file ({error}); copy or train it again"
        ) from error


def _check(first: bytes, size: int, path: Path) -> None:
    """Refuse what is no safetensors file by its first 8 bytes, the size of its JSON header.

    The file itself claims that size, and a wrong claim would parse gigabytes.
    """
    if len(first) < 8:
        raise ExpertError(
            f"{path}: truncated safetensors file ({size} bytes, a header needs 8); copy or "
            "train it again"
        )
    (header_bytes,) = struct.unpack("<Q", first)
    # Two bytes are the smallest JSON object. A hole in a file is zeros, which claim none.
    if not 2 <= header_bytes <= min(_MAX_HEADER_BYTES, size - 8):
        raise ExpertError(
            f"{path}: safetensors header claims {header_bytes} bytes, the file has {size - 8} "
            f"after it (at most {_MAX_HEADER_BYTES} allowed): truncated or not safetensors; copy "
            "or train it again"
        )


def _array(name: str, view: Mapping[str, Any]) -> npt.NDArray[Any]:
    """One tensor; a `ValueError` names a type that numpy does not have."""
    content, shape, dtype = view["data"], view["shape"], view["dtype"]
    if dtype == "BF16":
        # The bits of a bfloat16 are the upper half of the same number's fp32.
        bits = np.frombuffer(content, np.dtype("<u2")).astype(np.uint32) << 16
        return bits.view(np.float32).reshape(shape)
    if dtype not in _DTYPES:
        raise ValueError(f"{name} is {dtype}, expected one of {', '.join(_DTYPES)}, BF16")
    return np.frombuffer(content, np.dtype(_DTYPES[dtype])).reshape(shape)
