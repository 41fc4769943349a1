"""Replaces a model's attention function for a while, through transformers' attention interface."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from pidep.adapters.site import Undo

__all__ = ["configs", "route"]

Attention = Callable[..., Any]
"""`(module, query, key, value, attention_mask, **options) -> (output [B, T, heads, head_dim],
weights)`.
"""


def configs(model: nn.Module) -> list[Any]:
    """Every config in the model, parents before children.

    Encoder-decoders and towers have several.
    """
    found: dict[int, Any] = {}

    def walk(config: Any) -> Iterator[Any]:
        yield config
        for key in getattr(config, "sub_configs", {}):
            part = getattr(config, key, None)
            if part is not None:
                yield from walk(part)

    for module in model.modules():
        if hasattr(module, "config") and hasattr(module.config, "_attn_implementation"):
            for config in walk(module.config):
                # By identity: two parts of a model may have equal configs, and each must be set.
                found.setdefault(id(config), config)
    return list(found.values())


def route(model: nn.Module, name: str, attention: Attention) -> Undo:
    """Send every attention layer through `attention`, which is registered as `name`.

    Masks reach `attention` in full, `[B, 1, T, S]` bool, so that they can be widened.
    """
    _register(name, attention)
    before = [(config, config._attn_implementation) for config in configs(model)]
    for config, _ in before:
        config._attn_implementation = name

    def back() -> None:
        # Parents first: a config hands its value down to its parts.
        for config, implementation in before:
            config._attn_implementation = implementation

    return back


def _register(name: str, attention: Attention) -> None:
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    def whole_mask(*arguments: Any, **options: Any) -> Any:
        return sdpa_mask(
            *arguments,
            # transformers drops a mask that sdpa could build itself. A dropped mask cannot be
            # widened.
            **{**options, "allow_is_causal_skip": False, "allow_is_bidirectional_skip": False},
        )

    if name not in ALL_ATTENTION_FUNCTIONS.valid_keys():
        # Once per process: transformers' registry is global and has no call that removes a name.
        ALL_ATTENTION_FUNCTIONS.register(name, attention)
        ALL_MASK_ATTENTION_FUNCTIONS.register(name, whole_mask)
