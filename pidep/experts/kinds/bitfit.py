"""BitFit (Ben Zaken et al., 2022): a change of every bias."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from pidep.experts.site import Kind, WrappedSite

__all__ = ["KIND", "BitfitSite"]


class BitfitSite(WrappedSite):
    """A module with a bias, plus a mixture of bias changes."""

    def forward(self, *inputs: Tensor) -> Tensor:
        """As the module; the bias is added to its output's last axis."""
        assert self.base is not None
        return cast(Tensor, self.base(*inputs)) + self.tensors()["bias"].unsqueeze(-2)


def _candidates(model: nn.Module) -> list[str]:
    return [
        name
        for name, module in model.named_modules()
        if name and isinstance(module, nn.Linear | nn.LayerNorm) and isinstance(module.bias, nn.Parameter)
    ]


def _shapes(model: nn.Module, site: str, _: int) -> dict[str, tuple[int, ...]]:
    return {"bias": (len(cast(Tensor, model.get_submodule(site).bias)),)}


def _start(_: str, shape: tuple[int, ...], __: torch.Generator) -> Tensor:
    return torch.zeros(shape)


KIND = Kind("bitfit", BitfitSite, _candidates, _shapes, _start, size_of=lambda _: 1, learning_rate=5e-3)
