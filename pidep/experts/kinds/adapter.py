"""Bottleneck adapters after the projections that write to the residual stream: y + up(relu(down(y))).

Houlsby et al. (2019) put one after attention and one after the feed-forward, Pfeiffer et al. (2021) the second only:
both are a choice of sites, `*` and `pfeiffer`.
"""

from __future__ import annotations

import re
from typing import cast

import torch
from torch import Tensor, nn

from pidep.experts.site import Kind, WrappedSite

__all__ = ["KIND", "AdapterSite"]

_WRITES = re.compile(r"(output\.dense|out_proj|o_proj|out_lin|\.o|\.wo|\.Wo|fc2|lin2|down_proj|c_proj|dense_4h_to_h|proj)$")
_FEED_FORWARD = re.compile(r"(ffn|mlp|feed_forward|DenseReluDense|intermediate|fc2|lin2|down_proj|\.wo$)|(?<!attention\.)output\.dense$")


class AdapterSite(WrappedSite):
    """A Linear followed by a mixture of adapters, interpolated on the parameters."""

    def forward(self, x: Tensor) -> Tensor:
        """`[..., in]` to `[..., out]`."""
        assert self.base is not None
        y = cast(Tensor, self.base(x))
        own = self.tensors()
        hidden = torch.relu(y @ own["down"].transpose(-1, -2) + own["down_bias"].unsqueeze(-2))
        return y + hidden @ own["up"].transpose(-1, -2) + own["up_bias"].unsqueeze(-2)


def _candidates(model: nn.Module) -> list[str]:
    """Linears inside a stack of layers that write to the residual stream."""
    stacks = [f"{name}." for name, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module) > 1]
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and _WRITES.search(name) and any(name.startswith(stack) for stack in stacks)
    ]


def feed_forward(sites: list[str]) -> list[str]:
    """The sites after a feed-forward: Pfeiffer's placement."""
    return [site for site in sites if _FEED_FORWARD.search(site)]


def _shapes(model: nn.Module, site: str, width: int) -> dict[str, tuple[int, ...]]:
    size = cast(nn.Linear, model.get_submodule(site)).out_features
    return {"down": (width, size), "down_bias": (width,), "up": (size, width), "up_bias": (size,)}


def _start(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """down Kaiming-uniform, the rest zero: an untrained adapter passes everything through."""
    if name != "down":
        return torch.zeros(shape)
    bound = shape[1] ** -0.5
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)


KIND = Kind("adapter", AdapterSite, _candidates, _shapes, _start, size_of=lambda tensors: len(tensors["down"]), learning_rate=2e-3)
