"""Dense layers of both conventions: `nn.Linear` [out, in] and transformers' `Conv1D` [in, out]."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from pidep.errors import ExpertError

__all__ = ["as_linear", "dense_layers", "is_dense", "linear_at", "widths"]


def is_dense(module: nn.Module) -> bool:
    """Whether a module maps `[..., in]` to `[..., out]` when it is called."""
    if isinstance(module, nn.Linear):
        # nn.MultiheadAttention reads the weight of its out_proj and never calls the module. A
        # wrapper there would never run.
        return not isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear)
    return _is_conv1d(module)


def _is_conv1d(module: nn.Module) -> bool:
    # Compared by name, so that transformers is not imported for backbones of other libraries.
    return type(module).__name__ == "Conv1D" and hasattr(module, "nx") and hasattr(module, "nf")


def dense_layers(model: nn.Module) -> list[str]:
    """Every dense layer once, in the order of the modules."""
    return [name for name, module in model.named_modules() if name and is_dense(module)]


def widths(module: nn.Module) -> tuple[int, int]:
    """Input and output width."""
    found: Any = module
    return (found.nx, found.nf) if _is_conv1d(module) else (found.in_features, found.out_features)


def as_linear(module: nn.Module) -> nn.Linear:
    """The layer as a Linear.

    A Conv1D becomes a view, so that writing to its weight changes the backbone.
    """
    if isinstance(module, nn.Linear):
        return module
    found: Any = module
    # On the meta device: the weight is replaced at once, and no memory is filled for nothing.
    linear = nn.Linear(found.nx, found.nf, device="meta")
    linear.weight = nn.Parameter(found.weight.detach().T, requires_grad=False)
    linear.bias = nn.Parameter(found.bias.detach(), requires_grad=False)
    return linear


def linear_at(model: nn.Module, site: str) -> nn.Linear:
    """The dense layer a site names, as a Linear.

    Raises:
        ExpertError: there is no such layer.
    """
    try:
        module = model.get_submodule(site)
    except AttributeError:
        module = torch.nn.Identity()
    if not is_dense(module):
        raise ExpertError(
            f"site {site!r}: the backbone has no Linear of that name; the expert belongs to "
            "another backbone"
        )
    return as_linear(module)
