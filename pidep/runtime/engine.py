"""TensorRT engines in this process: fixed buffers, and one CUDA graph for each shape.

TensorRT and CUDA are imported when an engine is opened. They are needed where an engine runs, and
nowhere else.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from pidep.artifacts.engine import EngineRecord
from pidep.errors import AnswerError, ServingError
from pidep.runtime.answer import Array
from pidep.runtime.entry import entry_file

__all__ = ["EngineInput", "EngineSession", "missing_for"]

_KEPT_GRAPHS = 64
"""Shapes whose CUDA graphs are kept."""


def missing_for(record: EngineRecord) -> str | None:
    """What this machine lacks to run an engine; None where nothing is missing."""
    try:
        cuda = import_module("cuda.bindings.runtime")
    except ImportError:
        return "the package cuda-bindings"
    error, count = cuda.cudaGetDeviceCount()
    if int(error) or not count:
        return "an NVIDIA GPU with its driver"
    try:
        library = import_module(record.library)
    except (ImportError, OSError, RuntimeError):
        return f"the package {record.library}"
    if str(library.__version__) != record.library_version:
        return f"{record.library} {record.library_version} (found {library.__version__})"
    return None


@dataclass(frozen=True)
class EngineInput:
    """An input of an engine, described as ONNX Runtime describes those of a graph."""

    name: str
    type: str
    """Such as `tensor(float16)`."""
    largest: tuple[int, ...]


class EngineSession:
    """Runs batches of one engine, from any thread, one at a time."""

    def __init__(self, plan: Path, record: EngineRecord, *, held: Collection[str] = ()) -> None:
        """Open an engine and allocate its inputs and outputs at their largest sizes.

        Args:
            held: inputs that lie on the GPU already, in memory of the caller.

        Raises:
            ServingError: the file is not the recorded one, or this machine cannot run it.
        """
        data = entry_file(plan, record.digest)
        missing = missing_for(record)
        if missing is not None:
            raise ServingError(
                f"{plan}: needs {missing}; install it, or export with a recipe of ONNX Runtime"
            )
        self._cuda = import_module("cuda.bindings.runtime")
        trt = import_module(record.library)
        self._logger = trt.Logger(trt.Logger.ERROR)
        self._runtime = trt.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(data)
        if self._engine is None:
            found = ", ".join(record.compute_capabilities) or "the GPU that compiled it"
            raise ServingError(
                f"{plan}: this GPU does not run the engine, which is for {found}; export it for "
                "this GPU's compute capability"
            )
        self._context = self._engine.create_execution_context()
        self._stream = self._called(self._cuda.cudaStreamCreate())
        self._graphs: OrderedDict[tuple[Any, ...], Any] = OrderedDict()
        self._limits: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}
        self._dtypes: dict[str, Any] = {}
        self._buffers: dict[str, int] = {}
        self._held: dict[str, Any] = dict.fromkeys(held)
        self._lock = threading.Lock()
        self._allocate(trt)

    def get_inputs(self) -> list[EngineInput]:
        """As `onnxruntime.InferenceSession.get_inputs`."""
        types = {"float16": "float16", "float32": "float", "int64": "int64"}
        return [
            EngineInput(name, f"tensor({types[str(self._dtypes[name])]})", largest)
            for name, (_, largest) in self._limits.items()
        ]

    def run(
        self,
        outputs: Sequence[str],
        feeds: Mapping[str, Array],
        *,
        held: Mapping[str, Any] | None = None,
    ) -> list[Array]:
        """The outputs of one batch, as `onnxruntime.InferenceSession.run` gives them.

        Args:
            held: input to `DeviceArray`, for those inputs that the constructor was given. Others
                than last time cost new CUDA graphs.

        Raises:
            AnswerError: a shape outside the engine's profile, or the GPU fails.
        """
        given = {**feeds, **(held or {})}
        shapes = tuple((name, _shape_of(given[name])) for name in self._limits)
        for name, shape in shapes:
            self._require_within(name, shape)
        with self._lock:  # one context, and one buffer for each input
            self._hold(held or {})
            for name in self._limits:
                if name not in self._held:
                    self._copy_in(name, feeds[name])
            self._launch(shapes)
            found = [self._copy_out(name) for name in outputs]
            self._called(self._cuda.cudaStreamSynchronize(self._stream))
        return found

    def _hold(self, held: Mapping[str, Any]) -> None:
        """Let the engine read the caller's arrays where they lie."""
        moved = {name: one for name, one in held.items() if self._held[name] is not one}
        for name, one in moved.items():
            self._context.set_tensor_address(name, one.data_ptr())
            self._held[name] = one
        if moved:  # a CUDA graph remembers addresses
            for graph in self._graphs.values():
                self._called(self._cuda.cudaGraphExecDestroy(graph))
            self._graphs.clear()

    def _allocate(self, trt: Any) -> None:
        """Buffers at fixed addresses: a CUDA graph remembers addresses."""
        engine = self._engine
        names = [engine.get_tensor_name(number) for number in range(engine.num_io_tensors)]
        inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        for name in names:
            self._dtypes[name] = np.dtype(trt.nptype(engine.get_tensor_dtype(name)))
        for name in inputs:
            smallest, _, largest = engine.get_tensor_profile_shape(name, 0)
            self._limits[name] = tuple(smallest), tuple(largest)
            # Outputs have their largest shapes where the inputs have theirs.
            self._context.set_input_shape(name, tuple(largest))
        for name in names:
            if name in self._held:
                continue
            shape = self._context.get_tensor_shape(name)
            size = max(1, math.prod(shape)) * self._dtypes[name].itemsize
            self._buffers[name] = int(self._called(self._cuda.cudaMalloc(size)))
            self._context.set_tensor_address(name, self._buffers[name])

    def _require_within(self, name: str, shape: tuple[int, ...]) -> None:
        smallest, largest = self._limits[name]
        fits = len(shape) == len(largest) and all(
            low <= size <= high for low, size, high in zip(smallest, shape, largest, strict=True)
        )
        if not fits:
            raise AnswerError(
                f"input {name!r} is {shape}, the engine takes {smallest} to {largest}; send fewer "
                "rows or shorter texts, or export with a larger profile"
            )

    def _copy_in(self, name: str, array: Array) -> None:
        data = np.ascontiguousarray(array, dtype=self._dtypes[name])
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        # Not asynchronous: numpy's memory may be gone before the copy is done.
        self._called(
            self._cuda.cudaMemcpy(self._buffers[name], data.ctypes.data, data.nbytes, kind)
        )

    def _copy_out(self, name: str) -> Array:
        found = np.empty(tuple(self._context.get_tensor_shape(name)), self._dtypes[name])
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._called(
            self._cuda.cudaMemcpyAsync(
                found.ctypes.data, self._buffers[name], found.nbytes, kind, self._stream
            )
        )
        return found

    def _launch(self, shapes: tuple[tuple[str, tuple[int, ...]], ...]) -> None:
        """One launch for a known shape; a new shape runs once, and is then recorded."""
        for name, shape in shapes:
            self._context.set_input_shape(name, shape)
        graph = self._graphs.pop(shapes, None)
        if graph is None:
            # The first run of a shape may allocate, which a recording must not see.
            self._enqueue()
            self._called(self._cuda.cudaStreamSynchronize(self._stream))
            graph = self._recorded()
        else:
            self._called(self._cuda.cudaGraphLaunch(graph, self._stream))
        self._graphs[shapes] = graph
        if len(self._graphs) > _KEPT_GRAPHS:
            _, oldest = self._graphs.popitem(last=False)
            self._called(self._cuda.cudaGraphExecDestroy(oldest))

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(self._stream):
            raise AnswerError("the engine failed on this batch; see the server's log")

    def _recorded(self) -> Any:
        mode = self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._called(self._cuda.cudaStreamBeginCapture(self._stream, mode))
        self._enqueue()
        graph = self._called(self._cuda.cudaStreamEndCapture(self._stream))
        return self._called(self._cuda.cudaGraphInstantiate(graph, 0))

    def _called(self, result: tuple[Any, ...]) -> Any:
        """What a call of CUDA gives; every call gives its error first."""
        error, *values = result
        if int(error):
            _, name = self._cuda.cudaGetErrorName(error)
            raise AnswerError(f"CUDA: {name.decode()}; see the server's log")
        return values[0] if values else None


def _shape_of(array: Any) -> tuple[int, ...]:
    """Of an array of numpy, or of one on the GPU."""
    shape = array.shape
    return tuple(shape() if callable(shape) else shape)
