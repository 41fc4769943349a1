"""A LoRA folded into the backbone's own weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from pidep.adapters.dense import linear_at
from pidep.adapters.site import Tensors
from pidep.kernels.lora_fold import lora_fold

__all__ = ["folded_into"]


@contextmanager
def folded_into(model: nn.Module, sites: Mapping[str, Tensors], *, scaling: float) -> Iterator[None]:
    """Add s·BA (summed in fp32, rounded once) to the backbone's weights; the old weights come back bit for bit."""
    linears = {site: linear_at(model, site) for site in sites}
    kept = {site: linear.weight.detach().clone() for site, linear in linears.items()}
    try:
        with torch.no_grad():
            for site, lora in sites.items():
                weight = linears[site].weight
                a, b = (torch.from_numpy(lora[name]).to(weight.device) for name in ("lora_A", "lora_B"))
                lora_fold(weight, a, b, a.new_full((len(a),), scaling), out=weight)
        yield
    finally:
        with torch.no_grad():
            for site, weight in kept.items():
                linears[site].weight.copy_(weight)
