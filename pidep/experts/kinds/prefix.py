"""Prefix-tuning (Li and Liang, 2021): virtual keys and values that every token of an attention layer can attend to.

Works on every transformers model whose attention goes through transformers' attention interface.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from pidep.errors import ExpertError
from pidep.experts.site import ExpertSite, Kind

__all__ = ["KIND", "PrefixSite"]

_PREFIX, _PROBE = "pidep_prefix", "pidep_probe"
_WIDTHS: WeakKeyDictionary[nn.Module, dict[str, int]] = WeakKeyDictionary()


class PrefixSite(ExpertSite):
    """A mixture of key and value prefixes at one attention layer."""

    def attach(self, model: nn.Module, name: str) -> Callable[[], None]:
        """Hang the prefix on the attention layer and route the model through the attention below."""
        attention = model.get_submodule(name)
        back = _use(model, _PREFIX)
        attention.pidep_prefix = self

        def detach() -> None:
            del attention.pidep_prefix
            back()

        return detach


def _use(model: nn.Module, implementation: str) -> Callable[[], None]:
    """Switch every config in the model to an attention implementation; the function returned switches back."""
    _register()
    configs: dict[int, Any] = {id(module.config): module.config for module in model.modules() if hasattr(module, "config")}
    before = [(config, config._attn_implementation) for config in configs.values()]
    for config, _ in before:
        config._attn_implementation = implementation

    def back() -> None:
        for config, name in before:
            config._attn_implementation = name

    return back


def _register() -> None:
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    def mask(*arguments: Any, **options: Any) -> Any:
        # a mask that was skipped could not be widened by the prefix
        return sdpa_mask(*arguments, **{**options, "allow_is_causal_skip": False, "allow_is_bidirectional_skip": False})

    if _PREFIX not in ALL_ATTENTION_FUNCTIONS.valid_keys():
        for name in (_PREFIX, _PROBE):
            ALL_ATTENTION_FUNCTIONS.register(name, _attention)
            ALL_MASK_ATTENTION_FUNCTIONS.register(name, mask)


def _attention(module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any) -> Any:
    """Scaled dot-product attention with the layer's prefix before its keys and values `[B, heads, T, head_dim]`."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if module.config._attn_implementation == _PROBE:
        module.pidep_width = key.shape[1] * key.shape[3]
    site = getattr(module, "pidep_prefix", None)
    if site is not None:
        prefix = site.tensors()
        count = prefix["key"].shape[-2]
        key, value = (torch.cat([_heads(prefix[name], like), like], 2) for name, like in (("key", key), ("value", value)))
        if attention_mask is not None:
            seen: Any = True if attention_mask.dtype == torch.bool else 0.0
            attention_mask = nn.functional.pad(attention_mask, (count, 0), value=seen)
        if options.get("position_bias") is not None:
            options["position_bias"] = nn.functional.pad(options["position_bias"], (count, 0))
    return sdpa_attention_forward(module, query, key, value, attention_mask, **options)


def _heads(prefix: Tensor, like: Tensor) -> Tensor:
    """`[P, H]` or `[B, P, H]` to `[B, heads, P, head_dim]`."""
    batch, heads, _, size = like.shape
    return prefix.reshape(*prefix.shape[:-1], heads, size).transpose(-3, -2).expand(batch, -1, -1, -1)


def _widths(model: nn.Module) -> dict[str, int]:
    """Attention layers that go through the interface, with heads × head_dim of their keys; found by one tiny forward pass."""
    if model not in _WIDTHS:
        inputs = getattr(model, "dummy_inputs", None)
        if inputs is None:
            raise ExpertError(f"prefix experts: {type(model).__name__} is not a transformers model; use another kind")
        back = _use(model, _PROBE)
        try:
            with torch.no_grad():
                model(**inputs)
            _WIDTHS[model] = {name: module.pidep_width for name, module in model.named_modules() if hasattr(module, "pidep_width")}
        finally:
            back()
            for module in model.modules():
                if hasattr(module, "pidep_width"):
                    del module.pidep_width
    return _WIDTHS[model]


def _candidates(model: nn.Module) -> list[str]:
    return list(_widths(model))


def _shapes(model: nn.Module, site: str, tokens: int) -> dict[str, tuple[int, ...]]:
    width = _widths(model)[site]
    return {"key": (tokens, width), "value": (tokens, width)}


def _start(_: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.empty(shape).normal_(0.0, 0.02, generator=generator)


KIND = Kind("prefix", PrefixSite, _candidates, _shapes, _start, size_of=lambda tensors: len(tensors["key"]), learning_rate=2e-2)
