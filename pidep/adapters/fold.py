"""One expert in a backbone: folded into its weights where the kind can, else attached."""

from __future__ import annotations

from contextlib import AbstractContextManager

from torch import nn

from pidep.adapters.kinds import adapter_kind
from pidep.adapters.mixture import Mixture, attached
from pidep.experts.kind import Sites

__all__ = ["folded_or_attached"]


def folded_or_attached(
    model: nn.Module, sites: Sites, *, kind: str, scaling: float
) -> AbstractContextManager[None]:
    """The expert acts on the model inside; afterwards the backbone is what it was, bit for bit.

    A LoRA is added to the weights, summed in fp32 and rounded once. Other kinds are attached.
    """
    fold = adapter_kind(kind).fold
    if fold is None:
        # A bottleneck or a prefix has no equal among the backbone's weights.
        return attached(model, Mixture([sites], [scaling], kind=kind))
    return fold(model, sites, scaling)
