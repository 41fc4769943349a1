"""The vision graph beside a model's graph, compared with PyTorch on random pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from pidep.artifacts.names import GRAPH_PIXELS, GRAPH_VISUAL, VISION_GRAPH
from pidep.artifacts.vision import VisionRecord
from pidep.backbones.backbone import Backbone
from pidep.errors import ParityError
from pidep.export.graph import export_vision_graph
from pidep.export.recipe import Recipe
from pidep.files.digest import file_digest
from pidep.runtime.session import open_session

__all__ = ["export_vision"]


_MAX_ERROR = 1e-3
"""A larger relative error in fp32 is a mistake, not rounding."""


def export_vision(backbone: Backbone, folder: Path, recipe: Recipe) -> VisionRecord | None:
    """Write `vision.onnx` into a version folder; its record, None for a backbone of texts.

    It is compared on random pixels: the rows of a task may have no image, and yet other experts of
    the bank are asked about images.

    Raises:
        ParityError: its relative error is above 1e-3 or the recipe's `max_abs`.
    """
    if backbone.image_graph is None or backbone.preprocess is None:
        return None
    path = folder / VISION_GRAPH
    export_vision_graph(backbone, path, opset=recipe.opset)
    digest = file_digest(path)
    size = backbone.preprocess.size
    pixels = np.random.default_rng(0).standard_normal((4, 3, size, size)).astype(np.float32)
    (found,) = open_session(path, digest).run([GRAPH_VISUAL], {GRAPH_PIXELS: pixels})
    with torch.no_grad():
        expected = backbone.image_graph(torch.from_numpy(pixels)).numpy()
    # Relative: visual tokens have no scale of their own, unlike logits.
    error = float(np.abs(found - expected).max() / np.abs(expected).max())
    # The vision graph stays in fp32, so a looser bound of an int8 recipe is not for it.
    bound = min(recipe.tolerance.max_abs, _MAX_ERROR)
    if not error <= bound:  # NaN fails, too
        raise ParityError(
            f"parity of the vision graph: relative error is {error:.3g}, allowed {bound:.3g}; "
            "nothing was published"
        )
    return VisionRecord(
        graph_digest=digest,
        preprocess=backbone.preprocess,
        preprocess_digest=backbone.preprocess.digest,
        num_tokens=found.shape[1],
        width=found.shape[2],
        relative_error=error,
    )
