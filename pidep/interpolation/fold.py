"""Folding: a mixture into one LoRA (exact, by concatenation), and a LoRA into fp32 weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from pidep.experts.folder import LoraTensors
from pidep.experts.lora import Mixture, linear_at

__all__ = ["concatenate", "folded_into"]


def concatenate(mixture: Mixture) -> dict[str, LoraTensors]:
    """One LoRA of rank Σrᵢ whose ΔW is Σ αᵢ sᵢ BᵢAᵢ exactly; its scaling is 1 (α and s are in B)."""
    folded = {}
    with torch.no_grad():
        for name, site in mixture.by_name():
            a = site.a.detach().numpy().copy()
            b = (site.b * site.weight()).numpy().copy()
            folded[name] = LoraTensors(np.ascontiguousarray(a), np.ascontiguousarray(b))
    return folded


@contextmanager
def folded_into(model: nn.Module, sites: Mapping[str, LoraTensors], *, scaling: float) -> Iterator[None]:
    """Add s·BA (accumulated in fp64, rounded once) to the backbone's weights; the old weights come back bit for bit."""
    linears = {site: linear_at(model, site) for site in sites}
    kept = {site: linear.weight.detach().clone() for site, linear in linears.items()}
    try:
        with torch.no_grad():
            for site, lora in sites.items():
                delta = torch.from_numpy(lora.b).double() @ torch.from_numpy(lora.a).double() * scaling
                linears[site].weight.copy_((kept[site].double() + delta).to(kept[site].dtype))
        yield
    finally:
        with torch.no_grad():
            for site, weight in kept.items():
                linears[site].weight.copy_(weight)
