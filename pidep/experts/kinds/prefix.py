"""Prefix-tuning (Li and Liang, 2021): virtual keys and values that every token of an attention layer can attend to.

Works on every transformers model whose attention goes through transformers' attention interface: self-attention of encoders and
decoders, and cross-attention. Masks, causal or padding, never hide a prefix; a position bias (T5's, Swin's) is zero there. A KV cache
never holds it: it is put before what comes out of the cache, so it is there once at every step of `generate`.

A prefix at every attention layer of a single stack is PEFT's: it takes positions 0 … P-1 and the text stands behind it. A prefix at
some layers takes no positions, because the layers below it have never seen one.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pidep.errors import ExpertError
from pidep.experts.attention import route
from pidep.experts.layout import layout
from pidep.experts.positions import shift
from pidep.experts.site import ExpertSite, Kind, Undo

__all__ = ["KIND", "PrefixSite"]


class PrefixSite(ExpertSite):
    """A mixture of key and value prefixes `[P, heads × head_dim]` at one attention layer."""

    @property
    def length(self) -> int:
        """P, the number of virtual tokens."""
        return self.shape("key")[0]

    def attach(self, model: nn.Module, name: str) -> Undo:
        """Hang the prefix on the attention layer, where `_attention` finds it."""
        attention = model.get_submodule(name)
        attention.pidep_prefix = self

        def detach() -> None:
            del attention.pidep_prefix

        return detach


def _around(model: nn.Module, sites: Mapping[str, ExpertSite]) -> Undo:
    """Route the model through `_attention`; move the text behind a prefix that is PEFT's."""
    undo = [route(model, "pidep_prefix", _attention)]
    first = next(iter(sites.values()))
    if isinstance(first, PrefixSite) and _in_peft(model, list(sites)):
        undo.append(shift(model, first.length))

    def back() -> None:
        for step in reversed(undo):
            step()

    return back


def _attention(module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any) -> Any:
    """Scaled dot-product attention with the layer's prefix before its keys and values `[B, heads, T, head_dim]`."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    site = getattr(module, "pidep_prefix", None)
    if site is not None:
        prefix = site.tensors()
        if attention_mask is None:
            attention_mask = _causal_mask(module, query, key, options)
        key, value = (torch.cat([_heads(prefix[name], like), like], 2) for name, like in (("key", key), ("value", value)))
        if attention_mask is not None:
            seen: Any = True if attention_mask.dtype == torch.bool else 0.0
            attention_mask = nn.functional.pad(attention_mask, (site.length, 0), value=seen)
        if options.get("position_bias") is not None:
            options["position_bias"] = nn.functional.pad(options["position_bias"], (site.length, 0))
    return sdpa_attention_forward(module, query, key, value, attention_mask, **options)


def _causal_mask(module: Any, query: Tensor, key: Tensor, options: Mapping[str, Any]) -> Tensor | None:
    """The mask that a causal layer without one stands for: longer keys would make sdpa line it up wrongly, or cut the keys."""
    causal = options.get("is_causal")
    if not (getattr(module, "is_causal", True) if causal is None else causal) or query.shape[2] == 1:
        return None
    return torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril()[None, None]


def _heads(prefix: Tensor, like: Tensor) -> Tensor:
    """`[P, H]` or `[R, P, H]` to `[B, heads, P, head_dim]`; where B is R × windows (Swin), each row goes to all of its windows."""
    batch, heads, _, size = like.shape
    split = prefix.to(like.dtype).reshape(*prefix.shape[:-1], heads, size).transpose(-3, -2)
    if split.dim() == 4 and len(split) not in (1, batch):
        if batch % len(split):
            raise ExpertError(f"prefix experts: {batch} rows at an attention layer, {len(split)} samples; use batches of one")
        return split.repeat_interleave(batch // len(split), 0)
    return split.expand(batch, -1, -1, -1)


def _candidates(model: nn.Module) -> list[str]:
    found = layout(model)
    if found.problem:
        raise ExpertError(f"prefix experts: {type(model).__name__} does not run on a tiny input ({found.problem}); use another kind")
    return [name for name, _ in model.named_modules() if name in found.keys_and_values]


def _shapes(model: nn.Module, site: str, tokens: int) -> dict[str, tuple[int, ...]]:
    key, value = layout(model).keys_and_values[site]
    return {"key": (tokens, key), "value": (tokens, value)}


def _start(_: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.empty(shape).normal_(0.0, 0.02, generator=generator)


def _in_peft(model: nn.Module, sites: Sequence[str]) -> bool:
    """PEFT hands the prefix over as a filled KV cache: one stack of layers that takes one, and a prefix in every layer."""
    found = layout(model).keys_and_values
    one_stack = len({re.sub(r"\d+", "#", name) for name in found}) == 1
    one_width = len({width for pair in found.values() for width in pair}) == 1
    takes_cache = "past_key_values" in inspect.signature(model.forward).parameters
    return one_stack and one_width and takes_cache and set(sites) == set(found)


KIND = Kind(
    "prefix",
    PrefixSite,
    needs="attention that goes through transformers' attention interface",
    changes="adds P keys and values to attention layers",
    candidates=_candidates,
    shapes=_shapes,
    start=_start,
    size_of=lambda tensors: len(tensors["key"]),
    learning_rate=1e-2,
    around=_around,
    in_peft=_in_peft,
)
