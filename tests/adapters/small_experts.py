"""Random experts on the models of the zoo, and what an attachment could leave behind."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pidep.adapters.attention import configs
from pidep.adapters.mixture import Mixture, attached
from pidep.adapters.places import find_sites, fresh
from pidep.adapters.site import Tensors
from tests.adapters.zoo import ZOO, Architecture

SIZE = 3


@cache
def model_of(name: str) -> nn.Module:
    """One model for all tests of an architecture. Every test leaves it unchanged."""
    return ZOO[name].build()


def trace_of(model: nn.Module) -> Any:
    """Everything that an attachment could leave behind."""
    return (
        {
            name: (id(value), value.sum().item(), value.requires_grad)
            for name, value in model.state_dict(keep_vars=True).items()
        },
        {
            name: (id(module), type(module), hooks(module), plain(module))
            for name, module in model.named_modules()
        },
        [
            (id(config), config._attn_implementation, config.to_json_string())
            for config in configs(model)
        ],
    )


def hooks(module: nn.Module) -> list[int]:
    return [
        len(getattr(module, name))
        for name in ("_forward_hooks", "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs")
    ]


def plain(module: nn.Module) -> dict[str, Any]:
    """Attributes that are not tensors or modules, such as an embedding's offset."""
    return {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, int | float | str | bool | None)
    } | {"": tuple(sorted(vars(module)))}


def make(
    model: nn.Module,
    kind: str,
    *,
    seed: int,
    scale: float = 0.3,
    patterns: tuple[str, ...] = ("*",),
) -> dict[str, Tensors]:
    """A random expert that clearly changes the output."""
    rng = np.random.default_rng(seed)
    sites = fresh(model, find_sites(model, patterns, kind=kind), kind=kind, rank=SIZE)
    drawn = {
        site: {
            name: rng.normal(0, scale, value.shape).astype(np.float32)
            for name, value in part.items()
        }
        for site, part in sites.items()
    }
    for part in drawn.values():
        if "down_bias" in part:
            part["down_bias"] += (
                1  # of three units, all relus could be off, and then nothing has a gradient
            )
    return drawn


def mixture_of(
    *experts: Mapping[str, Tensors], kind: str, scaling: float = 1.5, on_outputs: bool = False
) -> Mixture:
    return Mixture(
        experts,
        [scaling if kind == "lora" else 1.0] * len(experts),
        kind=kind,
        on_outputs=on_outputs,
    )


def run(
    architecture: Architecture, model: nn.Module, mixture: Mixture | None = None, **inputs: Tensor
) -> Tensor:
    torch.manual_seed(0)  # ViLT draws the order of its patches at random
    with attached(model, mixture):
        return architecture.read(model(**{**architecture.inputs(), **inputs}))
