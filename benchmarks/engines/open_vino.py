"""OpenVINO in fp32 over pidep's merged graph, in an environment of its own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from benchmarks.engines.batch import Batch, Engine

__all__ = ["model"]


def model(folder: Path, graph: str) -> Engine:
    """The graph, compiled for this CPU."""
    import openvino

    core = openvino.Core()
    options = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": os.cpu_count() or 1,
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = core.compile_model(core.read_model(folder / graph), "CPU", options)
    request = compiled.create_infer_request()

    def engine(batch: Batch) -> Any:
        feeds = batch._asdict()
        return lambda: request.infer(feeds)[compiled.output(0)]

    return engine
