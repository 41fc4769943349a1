"""What an entry records about its TensorRT engine."""

from __future__ import annotations

from typing import Literal

from pidep.artifacts.record import Record

__all__ = ["EngineRecord"]


class EngineRecord(Record):
    """`model.plan`: an engine compiled from `model.onnx`, with the same inputs and outputs."""

    digest: str
    graph_digest: str
    """Digest of the ONNX graph that it was compiled from."""
    library: Literal["tensorrt", "tensorrt_rtx"]
    library_version: str
    compute_capabilities: tuple[str, ...] = ()
    """Such as `8.9`; empty for the GPU of the machine that compiled it."""
    profile: dict[str, tuple[int, int, int]]
    """Axis name to its smallest, usual and largest size."""
