"""Adapters of ONNX Runtime are compared with PyTorch, through ONNX Runtime's own loader."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from pidep.adapters.mixture import Mixture, attached
from pidep.artifacts.names import GRAPH, GRAPH_LOGITS
from pidep.backbones.backbone import Backbone
from pidep.errors import ParityError
from pidep.experts.folder import Expert
from pidep.runtime.adapter_file import SUFFIX

__all__ = ["check_adapters"]


def check_adapters(
    backbone: Backbone, experts: Sequence[Expert], folder: Path, *, bound: float
) -> dict[str, float]:
    """The largest difference of a logit, by expert, on the texts of its labels.

    Raises:
        ParityError: it is above the bound, or the adapter changes no embedding.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # it warns of every input that has a default
    session = onnxruntime.InferenceSession(
        str(folder / GRAPH), options, providers=["CPUExecutionProvider"]
    )
    errors: dict[str, float] = {}
    for expert in experts:
        rows = list(expert.label_texts)
        inputs = {
            name: tensor.numpy()
            for name, tensor in backbone.prepare(rows, max_length=expert.max_length).items()
        }
        adapter, run = onnxruntime.LoraAdapter(), onnxruntime.RunOptions()
        adapter.Load(str(folder / f"{expert.name}{SUFFIX}"))
        run.add_active_adapter(adapter)
        (found,) = session.run([GRAPH_LOGITS], inputs, run)
        scores = expert.label_embeddings.T * np.float32(expert.logit_scale)
        bare = backbone.encode(rows, max_length=expert.max_length).numpy() @ scores
        with torch.no_grad(), attached(backbone.model, Mixture.of([expert])):
            want = backbone.encode(rows, max_length=expert.max_length).numpy() @ scores
        errors[expert.name] = error = float(np.abs(found - want).max())
        effect = float(np.abs(want - bare).max())
        if not error <= bound or not error <= effect / 2:
            raise ParityError(
                f"expert {expert.name!r}: ONNX Runtime's logits differ from PyTorch's by "
                f"{error:.3g}, allowed {min(bound, effect / 2):.3g} (the expert changes them by "
                f"{effect:.3g}); report it, or export with `pidep export`"
            )
    return errors
