"""Where a backbone runs. Rows come from the host, and answers go back to it.

A backbone's `prepare` puts a batch where its model is, experts follow the model that they are
attached to, and `encode`, `all_logits` and `generate` give results on the host.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from pidep.adapters.places import device_of
from pidep.backbones.backbone import Backbone
from pidep.errors import UsageError

__all__ = ["on_device", "put_on"]

_Found = TypeVar("_Found", bound=Backbone)


def on_device(inputs: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """A batch's tensors where the model is."""
    device = device_of(model)
    return {name: tensor.to(device) for name, tensor in inputs.items()}


def put_on(backbone: _Found, device: str) -> _Found:
    """Move a backbone, in place, to a device of the settings.

    Args:
        device: `auto` for the first NVIDIA GPU that torch can use, else the CPU; `cpu`, `cuda` or
            `cuda:1`.

    Raises:
        UsageError: torch has no such device.
    """
    place = _chosen(device)
    backbone.model.to(place)
    # An encoder-decoder's is a part of `model`; pidep-mini's stem and connector lie beside it.
    graph = backbone.image_graph
    if graph is not None:
        graph.to(place)
    return backbone


def _chosen(device: str) -> torch.device:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "auto":
        return torch.device("cuda" if count else "cpu")
    if device.partition(":")[0] not in ("cpu", "cuda"):
        raise UsageError(f"device {device!r}: expected auto, cpu, cuda or cuda:1")
    place = torch.device(device)
    if place.type == "cuda" and (place.index or 0) >= count:
        found = f"{count} of them" if count else "none"
        raise UsageError(
            f"device {device!r}: expected an NVIDIA GPU that torch {torch.__version__} can use, "
            f"found {found}; use `device=cpu`, or install a torch for your CUDA"
        )
    return place
