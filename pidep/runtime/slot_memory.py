"""The memory of an arena's slots: on the host, or on the GPU where the graph runs.

Either way one slot is written at a time, and the others stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from importlib import import_module
from typing import Any, Protocol, TypeAlias
from weakref import finalize

import numpy as np
import numpy.typing as npt
import onnxruntime

from pidep.errors import ServingError
from pidep.runtime.answer import Array

__all__ = ["CudaMemory", "DType", "DeviceArray", "EngineMemory", "HostMemory", "SlotMemory"]

DType: TypeAlias = type[np.float32] | type[np.float16]
Shape: TypeAlias = tuple[int, ...]


class SlotMemory(Protocol):
    """One array `[slots, *shape]` for each input; slots that nobody has written are zeros."""

    slots: int
    values: dict[str, Any]
    """Input to OrtValue, or to `DeviceArray`. Writes reach it; after `grow` there are others."""

    def write(self, number: int, rows: Mapping[str, Array]) -> None:
        """Write a slot, which nobody reads, with fp32 numbers `shape` for each input."""

    def grow(self) -> None:
        """Twice the slots, in new arrays: running batches go on reading the old ones."""


class HostMemory:
    """Arrays of numpy; the graph reads them in place."""

    def __init__(
        self, shapes: Mapping[str, Shape], dtypes: Mapping[str, DType], *, slots: int
    ) -> None:
        self.slots = slots
        # Zeros that nobody has written take no memory yet.
        self._arrays: dict[str, npt.NDArray[Any]] = {
            name: np.zeros((slots, *shape), dtypes[name]) for name, shape in shapes.items()
        }
        self.values = self._as_values()

    def write(self, number: int, rows: Mapping[str, Array]) -> None:
        """Cast and copy into the arrays."""
        with np.errstate(over="ignore"):  # the probe reports what fp16 does not hold
            for name, row in rows.items():
                self._arrays[name][number] = row

    def grow(self) -> None:
        """Copy what is there into arrays of twice the size."""
        for name, array in self._arrays.items():
            larger = np.zeros((2 * self.slots, *array.shape[1:]), array.dtype)
            larger[: self.slots] = array
            self._arrays[name] = larger
        self.slots *= 2
        self.values = self._as_values()

    def _as_values(self) -> dict[str, Any]:
        return {
            name: onnxruntime.OrtValue.ortvalue_from_numpy(array, "cpu", 0)
            for name, array in self._arrays.items()
        }


class CudaMemory:
    """Arrays on the GPU. The host keeps no copy, and a write moves one slot's bytes."""

    def __init__(
        self,
        shapes: Mapping[str, Shape],
        dtypes: Mapping[str, DType],
        *,
        slots: int,
        device: str = "cuda",
        cuda: Any = None,
    ) -> None:
        """Allocate and clear.

        Args:
            device: as ONNX Runtime calls it.
            cuda: the module `cuda.bindings.runtime`, imported when absent.

        Raises:
            ServingError: the package cuda-bindings is missing, or the GPU's memory is full.
        """
        self._shapes, self._dtypes, self._device = dict(shapes), dict(dtypes), device
        self._cuda = cuda or _bindings()
        self.slots = slots
        self.values = self._allocated(slots)

    def write(self, number: int, rows: Mapping[str, Array]) -> None:
        """Copy one slot of every input, and wait until the bytes are there."""
        with np.errstate(over="ignore"):  # the probe reports what fp16 does not hold
            cast = {
                name: np.ascontiguousarray(row, self._dtypes[name]) for name, row in rows.items()
            }
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        for name, row in cast.items():
            target = self.values[name].data_ptr() + number * row.nbytes
            self._called(self._cuda.cudaMemcpy(target, row.ctypes.data, row.nbytes, kind))
        # A copy from pageable memory returns when it is staged, and the graph has its own stream.
        self._called(self._cuda.cudaDeviceSynchronize())

    def grow(self) -> None:
        """Copy what is there on the GPU itself."""
        larger = self._allocated(2 * self.slots)
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        for name, value in self.values.items():
            size = self.slots * self._bytes_of(name)
            self._called(
                self._cuda.cudaMemcpy(larger[name].data_ptr(), value.data_ptr(), size, kind)
            )
        self._called(self._cuda.cudaDeviceSynchronize())
        self.slots, self.values = 2 * self.slots, larger

    def _bytes_of(self, name: str) -> int:
        return int(np.prod(self._shapes[name])) * np.dtype(self._dtypes[name]).itemsize

    def _allocated(self, slots: int) -> dict[str, Any]:
        found = {}
        for name, shape in self._shapes.items():
            try:
                value = self._array((slots, *shape), self._dtypes[name])
            except RuntimeError as error:
                size = slots * sum(map(self._bytes_of, self._shapes)) / 2**20
                raise ServingError(
                    f"{slots} slots of experts need {size:.0f} MiB on the GPU: {error}; serve "
                    "fewer experts, or of a smaller rank"
                ) from error
            # Slot 0 is the bare backbone, and NaN in an unused slot times a weight of 0 is NaN.
            self._called(self._cuda.cudaMemset(value.data_ptr(), 0, slots * self._bytes_of(name)))
            found[name] = value
        return found

    def _array(self, shape: Shape, dtype: DType) -> Any:
        """Memory that nobody has cleared.

        Raises:
            RuntimeError: there is not enough.
        """
        make = onnxruntime.OrtValue.ortvalue_from_shape_and_type
        return make(shape, dtype, self._device, 0)

    def _called(self, returned: Any) -> None:
        error = returned[0]
        if int(error):
            raise ServingError(f"CUDA: {error!r} while an expert was written to the GPU")


class EngineMemory(CudaMemory):
    """As `CudaMemory`, without ONNX Runtime: for TensorRT's engines."""

    def _array(self, shape: Shape, dtype: DType) -> DeviceArray:
        return DeviceArray(shape, dtype, self._cuda)


class DeviceArray:
    """An array on the GPU, freed when nobody refers to it any more."""

    def __init__(self, shape: Shape, dtype: DType, cuda: Any) -> None:
        """Allocate.

        Args:
            cuda: the module `cuda.bindings.runtime`.

        Raises:
            RuntimeError: the GPU's memory is full.
        """
        self._shape, self._dtype, self._cuda = shape, np.dtype(dtype), cuda
        error, pointer = cuda.cudaMalloc(max(1, self._bytes))
        if int(error):
            raise RuntimeError(f"CUDA: {error!r}")
        self._pointer = int(pointer)
        finalize(self, cuda.cudaFree, pointer).atexit = False

    @property
    def _bytes(self) -> int:
        return math.prod(self._shape) * self._dtype.itemsize

    def data_ptr(self) -> int:
        """Its address on the GPU."""
        return self._pointer

    def shape(self) -> list[int]:
        """Sizes, as those of an OrtValue."""
        return list(self._shape)

    def numpy(self) -> npt.NDArray[Any]:
        """A copy on the host."""
        found = np.empty(self._shape, self._dtype)
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        error, *_ = self._cuda.cudaMemcpy(found.ctypes.data, self._pointer, self._bytes, kind)
        if int(error):
            raise ServingError(f"CUDA: {error!r} while an expert was read from the GPU")
        return found


def _bindings() -> Any:
    try:
        return import_module("cuda.bindings.runtime")
    except ImportError as error:
        raise ServingError(
            "a bank on a GPU needs the package cuda-bindings; pip install 'pidep[gpu]'"
        ) from error
