"""ONNX Runtime sessions over graphs that match their recorded digests."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import onnxruntime

from pidep.artifacts.names import DATA_SUFFIX
from pidep.runtime.entry import entry_file

__all__ = ["open_session"]

_LOG = logging.getLogger(__name__)
_CUDA = "CUDAExecutionProvider"
_DATA_FOLDER = "session.model_external_initializers_file_folder_path"
_SLOWER_ON_CPU = ("SkipLayerNormFusion", "BiasGeluFusion")
"""Fusions of ONNX Runtime whose CPU kernels are slower than the operators that they replace: MiniLM
is 4 to 17 % faster without them (onnxruntime 1.32, 1×16 to 32×64 tokens).
"""


def open_session(graph: Path, digest: str, *, threads: int | None = None) -> Any:
    """An ONNX Runtime session; the one way a graph is opened, in the parity gate and in serving.

    Args:
        digest: the graph's recorded digest. `require_files` checks that of weights beside it.
        threads: of one operation; the machine's cores, at most 8, when absent.

    Raises:
        ServingError: the graph is missing or not the recorded one.
    """
    data = entry_file(graph, digest)
    onnxruntime.disable_telemetry_events()  # a server speaks to its clients and to nobody else
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or min(os.cpu_count() or 1, 8)
    # Threads spin between the operators of a batch, which saves up to a third of a small one. They
    # stop with it: else they would take the cores from the server and its other models.
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    options.add_session_config_entry("session.force_spinning_stop", "1")
    providers = _providers()
    on_cpu = [name for name, _ in providers] == ["CPUExecutionProvider"]
    if not on_cpu:
        # CUDA's libraries may lie in Python packages, where no loader looks.
        onnxruntime.preload_dlls()
    # Weights beside the graph: a graph that comes as bytes has no folder of its own.
    if graph.with_name(graph.name + DATA_SUFFIX).is_file():
        options.add_session_config_entry(_DATA_FOLDER, str(graph.parent))
    # From the bytes that were checked: the file could change in between.
    session = onnxruntime.InferenceSession(
        data,
        options,
        providers=providers,
        disabled_optimizers=list(_SLOWER_ON_CPU) if on_cpu else None,
    )
    if not on_cpu and _CUDA not in session.get_providers():
        # ONNX Runtime goes on without it, many times slower, and says so in a log of its own.
        _LOG.warning(
            "%s: onnxruntime-gpu could not use CUDA here, so the graph runs on the CPU; check the "
            "GPU's driver, and CUDA's libraries (pip install 'onnxruntime-gpu[cuda,cudnn]')",
            graph,
        )
    return session


def _providers() -> list[tuple[str, dict[str, Any]]]:
    """CUDA where this onnxruntime has it, then the CPU, with their options."""
    # TF32 rounds the factors of a product to 10 bits of mantissa. The gate's bounds are for fp32.
    wanted: dict[str, dict[str, Any]] = {
        _CUDA: {"use_tf32": 0},
        "CPUExecutionProvider": {},
    }
    available = onnxruntime.get_available_providers()
    return [(name, options) for name, options in wanted.items() if name in available]
