"""BitFit (Ben Zaken et al., 2022): an offset for every bias."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from pidep.adapters import row_ops
from pidep.adapters.dense import is_dense
from pidep.adapters.site import AdapterKind, BankSite, LayerSite
from pidep.experts.kinds.bitfit import KIND as BITFIT

__all__ = ["KIND", "BitfitBankSite", "BitfitSite"]


class BitfitSite(LayerSite):
    """A layer with a bias, plus a mixture of bias offsets."""

    def act(self, x: Tensor, y: Tensor) -> Tensor:
        """y + δ on the last axis."""
        return y + self.tensors()["bias"].to(y.dtype).unsqueeze(-2)


class BitfitBankSite(BankSite):
    """A layer with a bias, plus the offsets of each row's own expert."""

    kind = BITFIT.name

    def act(self, x: Tensor, y: Tensor) -> Tensor:
        """y + Σₖ wₖ δₖ on the last axis."""
        return row_ops.add(y, row_ops.matmul(self.weights("bias"), self.own("bias")))


def _candidates(model: nn.Module) -> list[str]:
    return [
        name
        for name, module in model.named_modules()
        if name
        and (is_dense(module) or isinstance(module, nn.LayerNorm))
        # Llama's and T5's layers have no bias that an offset could join.
        and isinstance(module.bias, nn.Parameter)
    ]


def _shapes(model: nn.Module, site: str, _: int) -> dict[str, tuple[int, ...]]:
    return {"bias": (len(cast(Tensor, model.get_submodule(site).bias)),)}


def _start(_: str, shape: tuple[int, ...], __: torch.Generator) -> Tensor:
    return torch.zeros(shape)


KIND = AdapterKind(
    BITFIT,
    BitfitSite,
    needs="Linear or LayerNorm with a bias",
    changes="adds to every bias",
    candidates=_candidates,
    shapes=_shapes,
    as_constants=True,
    start=_start,
    learning_rate=2.5e-3,
    bank_site=BitfitBankSite,
)
