"""Folding a LoRA into the backbone's weights, and a LoRA of a large rank into one of a small rank."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from pidep.experts.mixture import linear_at
from pidep.experts.site import Tensors

__all__ = ["folded_into"]


@contextmanager
def folded_into(model: nn.Module, sites: Mapping[str, Tensors], *, scaling: float) -> Iterator[None]:
    """Add s·BA (accumulated in fp64, rounded once) to the backbone's weights; the old weights come back bit for bit."""
    linears = {site: linear_at(model, site) for site in sites}
    kept = {site: linear.weight.detach().clone() for site, linear in linears.items()}
    try:
        with torch.no_grad():
            for site, lora in sites.items():
                delta = torch.from_numpy(lora["lora_B"]).double() @ torch.from_numpy(lora["lora_A"]).double() * scaling
                linears[site].weight.copy_((kept[site].double() + delta).to(kept[site].dtype))
        yield
    finally:
        with torch.no_grad():
            for site, weight in kept.items():
                linears[site].weight.copy_(weight)
