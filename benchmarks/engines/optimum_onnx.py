"""optimum-onnx, in an environment of its own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.engines.batch import Batch, Engine, labels

__all__ = ["export", "model"]


def export(folder: Path) -> dict[str, str]:
    """Export the model as optimum does it."""
    from optimum.onnxruntime import ORTModelForFeatureExtraction

    found = ORTModelForFeatureExtraction.from_pretrained(
        folder / "hf", export=True, trust_remote_code=False
    )
    found.save_pretrained(folder / "optimum")
    return {"exported": str(folder / "optimum")}


def model(folder: Path) -> Engine:
    """Its exported graph, by its own class."""
    import onnxruntime
    from optimum.onnxruntime import ORTModelForFeatureExtraction

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = os.cpu_count() or 1
    run = ORTModelForFeatureExtraction.from_pretrained(
        folder / "optimum", session_options=options, trust_remote_code=False
    )
    choices = labels(folder)

    def engine(batch: Batch) -> Any:
        # BERT's own input, which the graph asks for.
        feeds = {**batch._asdict(), "token_type_ids": np.zeros_like(batch.input_ids)}

        def call() -> Any:
            hidden = run(**feeds).last_hidden_state
            mean = hidden.mean(1)  # the batches have no padding
            return mean / np.linalg.norm(mean, axis=1, keepdims=True) @ choices.T

        return call

    return engine
