"""Memory of slots: the GPU's holds what the host's holds, byte for byte, and grows alike.

The GPU is played by the host: its pointers are the host's, and `memmove` copies between them.
"""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pidep.errors import ServingError
from pidep.runtime.slot_memory import CudaMemory, HostMemory

SHAPES = {"lora_a": (2, 3, 5), "bias": (1, 1, 7)}
DTYPES = {"lora_a": np.float16, "bias": np.float32}


class PlayedCuda:
    """What `cuda.bindings.runtime` has, on the host's memory."""

    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToDevice=3)

    def __init__(self) -> None:
        self.copied = 0
        self.fails = 0

    def cudaMemcpy(self, to: int, source: int, size: int, kind: int) -> tuple[int]:
        assert kind in (1, 3)
        self.copied += size
        ctypes.memmove(to, source, size)
        return (self.fails,)

    def cudaMemset(self, to: int, value: int, size: int) -> tuple[int]:
        ctypes.memset(to, value, size)
        return (0,)

    def cudaDeviceSynchronize(self) -> tuple[int]:
        return (0,)


def on_gpu(cuda: Any, *, slots: int = 4) -> CudaMemory:
    return CudaMemory(SHAPES, DTYPES, slots=slots, device="cpu", cuda=cuda)


def rows(seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}


@given(st.lists(st.one_of(st.just("grow"), st.integers(0, 100)), max_size=8))
def test_a_gpu_holds_what_the_host_holds(steps: list[Any]) -> None:
    host, gpu = HostMemory(SHAPES, DTYPES, slots=2), on_gpu(PlayedCuda(), slots=2)
    for step in steps:
        for memory in (host, gpu):
            if step == "grow":
                if memory.slots < 16:
                    memory.grow()
            else:
                memory.write(step % memory.slots, rows(step))
    assert gpu.slots == host.slots
    for name in SHAPES:
        assert gpu.values[name].numpy().tobytes() == host.values[name].numpy().tobytes()


def test_a_write_moves_the_bytes_of_one_slot() -> None:
    cuda = PlayedCuda()
    memory = on_gpu(cuda, slots=64)
    memory.write(63, rows(1))
    assert cuda.copied == 2 * 3 * 5 * 2 + 7 * 4
    with pytest.raises(AssertionError):
        np.testing.assert_array_equal(memory.values["bias"].numpy()[63], 0)
    assert not memory.values["bias"].numpy()[:63].any()


def test_a_fault_of_the_gpu_is_named() -> None:
    cuda = PlayedCuda()
    memory = on_gpu(cuda)
    cuda.fails = 700
    with pytest.raises(ServingError, match="CUDA: 700 while an expert was written to the GPU"):
        memory.write(1, rows(1))


def test_the_package_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: str) -> Any:
        raise ImportError

    monkeypatch.setattr("pidep.runtime.slot_memory.import_module", missing)
    with pytest.raises(ServingError, match=r"cuda-bindings; pip install 'pidep\[gpu\]'"):
        CudaMemory(SHAPES, DTYPES, slots=2)
