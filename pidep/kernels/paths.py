"""Which code a kernel runs: OpenAI Triton on an NVIDIA GPU, plain torch everywhere else."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

import torch
from torch import Tensor

__all__ = ["Path", "PathReport", "fusable", "report", "usable"]

Path = Literal["fused", "torch"]
_MINIMUM = (8, 0)
"""Lowest compute capability. Older GPUs have no bf16, and the kernels were not compiled for them.
"""
CHOICE = "PIDEP_KERNELS"
"""Environment variable; the value `torch` turns the fused kernels off."""


@dataclass(frozen=True)
class PathReport:
    """The path that runs here, and the reason."""

    path: Path
    why: str
    device: str
    triton: str | None
    """Version of OpenAI Triton."""


@cache
def triton_version() -> str | None:
    """Version of OpenAI Triton; None if it is not installed. Imports nothing."""
    if importlib.util.find_spec("triton") is None:
        return None
    try:
        return version("triton")
    except PackageNotFoundError:
        return "unknown"


def fusable(*tensors: Tensor) -> bool:
    """Whether the fused kernels take these tensors.

    All of them must be on one supported NVIDIA GPU, and none may be float64.
    """
    if not all(tensor.is_cuda and tensor.dtype != torch.float64 for tensor in tensors):
        return False
    device = tensors[0].get_device()
    return all(tensor.get_device() == device for tensor in tensors) and usable(device)


@cache
def _known(index: int) -> bool:
    # Cached, because every kernel call asks. So PIDEP_KERNELS is read once in a process.
    return report(index).path == "fused"


def usable(index: int) -> bool:
    """True where the fused kernels run on the GPU of this index; a constant while tracing."""
    return _known(index)


# Same effect as torch.compiler.assume_constant_result, which would import dynamo. The path does not
# change while a graph is traced.
usable._dynamo_marked_constant = True  # type: ignore[attr-defined]


def report(index: int = 0) -> PathReport:
    """The report that `pidep doctor` shows."""
    found = triton_version()
    if not torch.cuda.is_available():
        return PathReport(
            "torch",
            "no NVIDIA GPU that torch can use",
            f"cpu ({torch.get_num_threads()} threads)",
            found,
        )
    name, capability = torch.cuda.get_device_name(index), torch.cuda.get_device_capability(index)
    device = f"{name} (compute capability {capability[0]}.{capability[1]})"
    # PyTorch for AMD answers `torch.cuda.is_available()` with True as well.
    if torch.version.hip is not None:
        return PathReport("torch", "the fused kernels are for NVIDIA GPUs", device, found)
    if os.environ.get(CHOICE) == "torch":
        return PathReport("torch", f"{CHOICE}=torch is set", device, found)
    if found is None:
        return PathReport(
            "torch", "OpenAI Triton is not installed; pip install triton", device, found
        )
    if capability < _MINIMUM:
        return PathReport(
            "torch",
            f"the fused kernels need compute capability {_MINIMUM[0]}.{_MINIMUM[1]}",
            device,
            found,
        )
    return PathReport("fused", "OpenAI Triton on this GPU", device, found)
