"""ONNX Runtime sessions over graphs that are what they are recorded to be. No torch."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import onnxruntime

from pidep.errors import ServingError

__all__ = ["open_session"]


def open_session(graph: Path, digest: str, *, threads: int | None = None) -> Any:
    """An ONNX Runtime session over a graph whose digest is checked first.

    Raises:
        ServingError: the graph is missing or not the one recorded.
    """
    try:
        data = graph.read_bytes()
    except OSError as error:
        raise ServingError(f"{graph}: not readable ({error.strerror}); export the model again") from error
    found = "sha256:" + hashlib.sha256(data).hexdigest()
    if found != digest:
        raise ServingError(f"{graph}: digest {found}, expected {digest}; export the model again")
    onnxruntime.disable_telemetry_events()  # a server speaks to its clients and to nobody else
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or min(os.cpu_count() or 1, 8)
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    available = onnxruntime.get_available_providers()
    providers = [name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if name in available]
    return onnxruntime.InferenceSession(data, options, providers=providers)
