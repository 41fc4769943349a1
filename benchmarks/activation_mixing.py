"""The authors' way of mixing LoRAs: as activations, one expert at a time. A baseline for steps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from pidep.adapters.site import Tensors, WrappedSite

__all__ = ["ActivationSite"]


class ActivationSite(WrappedSite):
    """y = Σₖ αₖ (W x + b + sₖ Bₖ(Aₖ x)).

    Args:
        base_per_expert: run the frozen layer once for each expert, as the authors' LoRA code does;
            otherwise once in all, which is cheaper than their code.
    """

    def __init__(
        self, parts: Sequence[Tensors], scalings: Sequence[float], *, base_per_expert: bool
    ) -> None:
        super().__init__(len(parts))
        self.a = nn.ParameterList(
            torch.from_numpy(part["lora_A"].copy()) for part in parts
        )  # [r, in] each
        self.b = nn.ParameterList(
            torch.from_numpy(part["lora_B"].copy()) for part in parts
        )  # [out, r] each
        self.scalings = tuple(scalings)
        self.base_per_expert = base_per_expert

    def forward(self, x: Tensor) -> Tensor:
        """`[..., in]` to `[..., out]`."""
        assert self.base is not None
        shared = None if self.base_per_expert else self.base(x)
        total: Tensor | None = None
        for weight, a, b, scale in zip(self.alpha(), self.a, self.b, self.scalings, strict=True):
            update = linear(linear(x, a), b) * scale
            own = weight * (update if shared is not None else self.base(x) + update)
            total = own if total is None else total + own
        assert total is not None
        return total if shared is None else shared + total
