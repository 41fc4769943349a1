"""ONNX Runtime's `.onnx_adapter` files, written and read by its own code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from pidep.errors import ExpertError
from pidep.files.bounded_read import MAX_TENSOR_BYTES, read_file

__all__ = ["SUFFIX", "read_adapter_file", "write_adapter_file"]

SUFFIX = ".onnx_adapter"
_MARK = b"TORT"
"""Bytes 4 to 8 of every such file."""


def write_adapter_file(path: Path, tensors: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write named tensors, which `onnxruntime.LoraAdapter` loads."""
    content = onnxruntime.AdapterFormat()
    values = onnxruntime.OrtValue.ortvalue_from_numpy
    content.set_parameters(
        {name: values(np.ascontiguousarray(array)) for name, array in tensors.items()}
    )
    content.set_adapter_version(1)
    content.set_model_version(1)
    content.export_adapter(str(path))


def read_adapter_file(path: Path) -> dict[str, npt.NDArray[Any]]:
    """The named tensors of a file.

    Raises:
        ExpertError: absent, too large, or not such a file.
    """

    def check(first: bytes, size: int) -> None:
        if first[4:8] != _MARK:
            raise ExpertError(f"{path}: not a file of ONNX Runtime's adapters; write it again")

    try:
        read_file(path, limit=MAX_TENSOR_BYTES, head=(8, check))
        found = onnxruntime.AdapterFormat.read_adapter(str(path)).get_parameters()
        # Copies: the numbers belong to the reader, which ends here.
        return {name: np.copy(value.numpy()) for name, value in found.items()}
    except FileNotFoundError as error:
        raise ExpertError(f"{path}: no such file; give the file that was written") from error
    except (RuntimeError, ValueError) as error:
        first = (str(error).splitlines() or ["?"])[0]
        raise ExpertError(f"{path}: truncated or damaged ({first}); write it again") from error
