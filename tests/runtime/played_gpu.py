"""A GPU and TensorRT, played on the host: device memory is the host's, engines run in ONNX Runtime.

A played plan is the ONNX graph itself. What is real: every address, shape, dtype and copy that
`EngineSession` and the arena make; a wrong address reads wrong bytes. A recorded CUDA graph keeps
the addresses and shapes of its recording, as a real one does.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime

from pidep.artifacts.engine import EngineRecord

__all__ = ["PlayedGpu"]

_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64}


class PlayedGpu:
    """What `cuda.bindings.runtime` has, and a module of TensorRT as its `tensorrt`."""

    cudaMemcpyKind = SimpleNamespace(
        cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2, cudaMemcpyDeviceToDevice=3
    )
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)

    def __init__(self, record: EngineRecord) -> None:
        self.memory: dict[int, Any] = {}
        """Address to what was allocated there."""
        self.recording: list[Callable[[], None]] | None = None
        self.launched = 0
        """Runs of a recorded graph."""
        self.tensorrt = SimpleNamespace(
            __version__=record.library_version,
            Logger=type("Logger", (), {"ERROR": 1, "__init__": lambda self, level: None}),
            TensorIOMode=SimpleNamespace(INPUT="input"),
            Runtime=lambda _: SimpleNamespace(
                deserialize_cuda_engine=lambda data: _Engine(data, record, self)
            ),
            nptype=lambda dtype: dtype,
        )

    def import_module(self, name: str) -> Any:
        """In the place of `importlib.import_module`."""
        return self if name == "cuda.bindings.runtime" else self.tensorrt

    def cudaGetDeviceCount(self) -> tuple[int, int]:
        return 0, 1

    def cudaMalloc(self, size: int) -> tuple[int, int]:
        # Not zeros: what reads memory that nobody has written is seen.
        held = (ctypes.c_ubyte * size).from_buffer(bytearray(b"\x7e" * size))
        address = ctypes.addressof(held)
        self.memory[address] = held
        return 0, address

    def cudaFree(self, address: int) -> tuple[int]:
        del self.memory[address]
        return (0,)

    def cudaMemcpy(self, to: int, source: int, size: int, kind: int) -> tuple[int]:
        assert kind in (1, 2, 3)
        ctypes.memmove(to, source, size)
        return (0,)

    def cudaMemcpyAsync(self, to: int, source: int, size: int, kind: int, _: int) -> tuple[int]:
        return self.cudaMemcpy(to, source, size, kind)

    def cudaMemset(self, to: int, value: int, size: int) -> tuple[int]:
        ctypes.memset(to, value, size)
        return (0,)

    def cudaStreamCreate(self) -> tuple[int, int]:
        return 0, 1

    def cudaDeviceSynchronize(self) -> tuple[int]:
        return (0,)

    def cudaStreamSynchronize(self, _: int) -> tuple[int]:
        return (0,)

    def cudaStreamBeginCapture(self, *_: int) -> tuple[int]:
        self.recording = []
        return (0,)

    def cudaStreamEndCapture(self, _: int) -> tuple[int, Any]:
        recorded, self.recording = self.recording, None
        return 0, recorded

    def cudaGraphInstantiate(self, graph: Any, _: int) -> tuple[int, Any]:
        return 0, graph

    def cudaGraphLaunch(self, graph: Any, _: int) -> tuple[int]:
        self.launched += 1
        for step in graph:
            step()
        return (0,)

    def cudaGraphExecDestroy(self, graph: Any) -> tuple[int]:
        graph.clear()
        return (0,)


class _Engine:
    def __init__(self, data: bytes, record: EngineRecord, gpu: PlayedGpu) -> None:
        self.session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
        self.inputs = {one.name: one for one in self.session.get_inputs()}
        self.outputs = {one.name: one for one in self.session.get_outputs()}
        self.names = [*self.inputs, *self.outputs]
        self.num_io_tensors = len(self.names)
        self.record, self.gpu = record, gpu

    def get_tensor_name(self, number: int) -> str:
        return self.names[number]

    def get_tensor_mode(self, name: str) -> str:
        return "input" if name in self.inputs else "output"

    def get_tensor_dtype(self, name: str) -> Any:
        return _TYPES[{**self.inputs, **self.outputs}[name].type]

    def get_tensor_profile_shape(self, name: str, _: int) -> list[tuple[int, ...]]:
        sizes = self.record.profile
        return [
            tuple(
                sizes[one][at] if isinstance(one, str) else one for one in self.inputs[name].shape
            )
            for at in range(3)
        ]

    def create_execution_context(self) -> _Context:
        return _Context(self)


class _Context:
    def __init__(self, engine: _Engine) -> None:
        self.engine = engine
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> None:
        self.shapes[name] = tuple(shape)

    def set_tensor_address(self, name: str, address: int) -> None:
        self.addresses[name] = address

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name in self.shapes:
            return self.shapes[name]
        axes: dict[str, int] = {}
        for one, shape in self.shapes.items():
            axes |= dict(zip(self.engine.inputs[one].shape, shape, strict=True))
        return tuple(axes.get(one, one) for one in self.engine.outputs[name].shape)

    def execute_async_v3(self, _: int) -> bool:
        shapes, addresses, engine = dict(self.shapes), dict(self.addresses), self.engine

        def run() -> None:
            feeds = {
                name: _at(addresses[name], shapes[name], engine.get_tensor_dtype(name))
                for name in engine.inputs
            }
            for name, found in zip(engine.outputs, engine.session.run(None, feeds), strict=True):
                ctypes.memmove(addresses[name], found.ctypes.data, found.nbytes)

        if engine.gpu.recording is None:
            run()
        else:
            engine.gpu.recording.append(run)
        return True


def _at(address: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    size = math.prod(shape) * np.dtype(dtype).itemsize
    return np.frombuffer(ctypes.string_at(address, size), dtype).reshape(shape)
