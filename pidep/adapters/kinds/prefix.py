"""Prefix-tuning (Li and Liang, 2021): virtual keys and values for attention layers.

It works on every transformers model that uses the attention interface: self-attention of encoders
and decoders, and cross-attention. No mask hides a prefix, causal or padding. A position bias (T5's,
Swin's) is zero there. A KV cache never holds the prefix: it is put before the cached keys at every
step of `generate`.

A prefix at every attention layer of a single stack is PEFT's. It takes positions 0 … P-1, and the
text follows. A prefix at some layers takes no positions, because the layers below it never saw one.

A prefix may also have a `bias` [n, P], which is added to the attention scores of its n·P virtual
tokens. It is then n prefixes side by side in the same P positions. A mixture on outputs folds into
this form, which PEFT does not have.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pidep.adapters import row_ops
from pidep.adapters.attention import route
from pidep.adapters.bank_rows import running_bank
from pidep.adapters.forward_facts import forward_facts
from pidep.adapters.positions import shift, shift_rows
from pidep.adapters.site import AdapterKind, Array, ExpertSite, Tensors, Undo, to_array
from pidep.errors import ExpertError
from pidep.experts.kinds.prefix import KIND as PREFIX

__all__ = ["IDLE_BIAS", "KIND", "PrefixBankSite", "PrefixSite", "attention_with_prefix"]


IDLE_BIAS = -1e4
"""Bias of an idle virtual token. exp(-1e4) is 0 in every precision, and the file stays finite."""


class PrefixSite(ExpertSite):
    """A mixture of key and value prefixes `[P, heads × head_dim]` at one attention layer."""

    @property
    def positions(self) -> int:
        """P, the number of positions that the virtual tokens take before the text."""
        return self.shape("bias")[1] if self.has("bias") else self.shape("key")[0]

    def acting(self) -> Mapping[str, Tensor]:
        """The prefix that the attention layer sees.

        `key` and `value` are `[P, H]`, or `[R, P, H]` for one expert a row; `bias` is optional.
        """
        return self.side_by_side() if self.on_outputs and self.rows is None else self.tensors()

    def side_by_side(self) -> dict[str, Tensor]:
        """One prefix of n·K·P virtual tokens, with log αₖ added to the scores of expert k's tokens.

        This mixes the experts' outputs, weighted by αₖ times the attention each expert draws: the
        softmax sees αₖ·exp(q·k) beside exp(q·k) of the text. A one-hot α is that expert.
        """
        all_of = self.experts
        # log α is added to scores: the attention's softmax turns the sum into a factor α.
        strength = torch.log_softmax(self.alpha_logits, 0).to(all_of["key"].dtype)[:, None, None]
        bias = (
            all_of["bias"]
            if self.has("bias")
            else all_of["key"].new_zeros(len(strength), 1, self.positions)
        )
        return {
            "key": all_of["key"].flatten(0, 1),
            "value": all_of["value"].flatten(0, 1),
            "bias": (bias + strength).flatten(0, 1),
        }

    def folded(self) -> dict[str, Array]:
        """The mixture as one prefix.

        A mixture on outputs becomes longer, without its idle tokens.
        """
        if not self.on_outputs:
            return super().folded()
        with torch.no_grad():
            whole = self.side_by_side()
        # Half of the bias is far from both sides: log α of a live token never comes near -5000.
        acts = (whole["bias"] > IDLE_BIAS / 2).any(1)
        tokens = acts.repeat_interleave(self.positions)
        return {
            "key": to_array(whole["key"][tokens]),
            "value": to_array(whole["value"][tokens]),
            "bias": to_array(whole["bias"][acts]),
        }

    def attach(self, model: nn.Module, name: str) -> Undo:
        """Set the prefix on the attention layer, where `attention_with_prefix` finds it."""
        attention = model.get_submodule(name)
        # On the module, because transformers' attention interface passes the module and nothing of
        # ours.
        attention.pidep_prefix = self

        def detach() -> None:
            del attention.pidep_prefix

        return detach


class PrefixBankSite(PrefixSite):
    """The prefixes of each row's own expert at one attention layer, mixed on their outputs.

    Virtual tokens that a row's expert does not have are hidden.
    """

    def __init__(self, name: str) -> None:
        super().__init__(1)
        self.name = name

    def acting(self) -> Mapping[str, Tensor]:
        """`key` and `value` `[B, K·P, H]`, `bias` `[B, 1, K·P]`."""
        bank = running_bank()
        key, value, live, bias = (
            bank.own(PREFIX.name, factor, self.name) for factor in ("key", "value", "live", "bias")
        )
        # Not a multiple of `live`: where it is 1, the bias must stay what it is, bit for bit.
        bias = (bias + (1 - live) * IDLE_BIAS).transpose(1, 2)  # [G, 1, K·P]
        # log w is added to scores: the attention's softmax turns the sum into a factor w. Slot 0
        # has weight 0, and its tokens are idle already.
        share = bank.weights(PREFIX.name, "bias", self.name)
        strength = torch.log(share.clamp(min=torch.finfo(share.dtype).tiny))
        return {
            "key": bank.expanded(key),
            "value": bank.expanded(value),
            "bias": bank.expanded(row_ops.add(bias, strength)),
        }


def _bank_around(model: nn.Module, sites: Mapping[str, ExpertSite]) -> Undo:
    """Route the model through `attention_with_prefix`; each row's text moves by its own shift."""
    undo = [route(model, "pidep_prefix", attention_with_prefix)]
    first = next(iter(sites))

    def by() -> Tensor | None:
        bank = running_bank()
        # All experts of a mixture take the same positions, and slot 0 takes none.
        shift = bank.own(PREFIX.name, "shift", first).amax(1)  # [G, 1]
        return bank.expanded(shift).to(torch.int64)

    if _in_peft(model, list(sites)):
        undo.append(shift_rows(model, by))

    def back() -> None:
        for step in reversed(undo):
            step()

    return back


def _around(model: nn.Module, sites: Mapping[str, ExpertSite]) -> Undo:
    """Route the model through `attention_with_prefix`.

    A text behind PEFT's kind of prefix is moved P positions.
    """
    # The whole model, not single layers: the implementation is an entry of its config.
    undo = [route(model, "pidep_prefix", attention_with_prefix)]
    first = next(iter(sites.values()))
    if isinstance(first, PrefixSite) and _in_peft(model, list(sites)):
        undo.append(shift(model, first.positions))

    def back() -> None:
        for step in reversed(undo):
            step()

    return back


def attention_with_prefix(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> Any:
    """Scaled dot-product attention, the layer's prefix before its keys and values.

    Keys and values are `[B, heads, T, head_dim]`.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    site = getattr(module, "pidep_prefix", None)
    if site is not None:
        prefix = site.acting()
        # transformers drops the mask where it lets sdpa make a causal one; that one would not know
        # the prefix.
        if attention_mask is None:
            attention_mask = _causal_mask(module, query, key, options)
        key, value = (
            torch.cat([_heads(prefix[name], like), like], 2)
            for name, like in (("key", key), ("value", value))
        )
        attention_mask = _widened(attention_mask, key, prefix)
        if options.get("position_bias") is not None:
            # Virtual tokens have no distance to the text, so their position bias is zero.
            options["position_bias"] = nn.functional.pad(
                options["position_bias"], (prefix["key"].shape[-2], 0)
            )
    return sdpa_attention_forward(module, query, key, value, attention_mask, **options)


def _widened(mask: Tensor | None, key: Tensor, prefix: Mapping[str, Tensor]) -> Tensor | None:
    """The mask `[B or 1, heads or 1, T, S]`, widened over the prefix.

    A mask never hides a prefix. A prefix's bias is added to its scores.
    """
    length = prefix["key"].shape[-2]
    if "bias" not in prefix:
        seen: Any = True if mask is None or mask.dtype == torch.bool else 0.0
        return None if mask is None else nn.functional.pad(mask, (length, 0), value=seen)
    bias = _rows_like(
        prefix["bias"].to(key.dtype).flatten(-2)[..., None, None, :], key.shape[0]
    )  # [1 or B, 1, 1, P]
    if mask is None:
        text = key.new_zeros(1, 1, 1, key.shape[2] - length)
    elif mask.dtype == torch.bool:
        text = torch.zeros_like(mask, dtype=key.dtype).masked_fill(
            ~mask, torch.finfo(key.dtype).min
        )
    else:
        text = mask
    # A size, not len(): torch.export would fix len() as a constant.
    rows, queries = bias.shape[0] if text.shape[0] == 1 else text.shape[0], text.shape[2]
    return torch.cat(
        [bias.expand(rows, text.shape[1], queries, -1), text.expand(rows, -1, -1, -1)], -1
    )


def _causal_mask(
    module: Any, query: Tensor, key: Tensor, options: Mapping[str, Any]
) -> Tensor | None:
    """The causal mask of a layer that was given none.

    With longer keys, sdpa would align its own causal mask wrongly or cut the keys.
    """
    causal = options.get("is_causal")
    if (
        not (getattr(module, "is_causal", True) if causal is None else causal)
        or query.shape[2] == 1
    ):
        return None
    return torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril()[
        None, None
    ]


def _heads(prefix: Tensor, like: Tensor) -> Tensor:
    """`[P, H]` or `[R, P, H]` to `[B, heads, P, head_dim]`."""
    batch, heads, _, size = like.shape
    split = prefix.to(like.dtype).reshape(*prefix.shape[:-1], heads, size).transpose(-3, -2)
    return _rows_like(split, batch).expand(batch, -1, -1, -1)


def _rows_like(rows: Tensor, batch: int) -> Tensor:
    """Rows of three axes, shared or `[R, …]` one for each sample, to `[1 or B, …]`.

    Where B is R × windows (Swin), each sample goes to all of its windows.
    """
    rows = rows if rows.dim() == 4 else rows[None]
    # A size, not len(): torch.export would fix len() as a constant.
    if rows.shape[0] in (1, batch):
        return rows
    if batch % len(rows):
        raise ExpertError(
            f"prefix experts: {batch} rows at an attention layer, {len(rows)} samples; use batches "
            "of one"
        )
    return rows.repeat_interleave(batch // len(rows), 0)


def _candidates(model: nn.Module) -> list[str]:
    found = forward_facts(model)
    if found.problem:
        raise ExpertError(
            f"prefix experts: {type(model).__name__} does not run on a tiny input "
            f"({found.problem}); use another kind"
        )
    return [name for name, _ in model.named_modules() if name in found.keys_and_values]


def _shapes(model: nn.Module, site: str, tokens: int) -> dict[str, tuple[int, ...]]:
    key, value = forward_facts(model).keys_and_values[site]
    return {"key": (tokens, key), "value": (tokens, value)}


def _bank_shapes(
    model: nn.Module, sites: Sequence[str], tokens: int
) -> dict[str, dict[str, tuple[int, ...]]]:
    """As `_shapes`, with a `shift` where a prefix at all of the sites takes positions."""
    shift: dict[str, tuple[int, ...]] = {"shift": (1, 1)} if _in_peft(model, sites) else {}
    return {site: _shapes(model, site, tokens) | shift for site in sites}


def _start(_: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.empty(shape).normal_(0.0, 0.02, generator=generator)


def _same_shapes(site: str, parts: Sequence[Tensors]) -> list[Tensors]:
    """Prefixes with the same number of biased parts, where any prefix has a bias.

    Idle tokens fill up.
    """
    for part in parts:
        if "bias" in part and (part["bias"].ndim != 2 or part["bias"].size != len(part["key"])):
            raise ExpertError(
                f"site {site!r}: bias {part['bias'].shape} for {len(part['key'])} virtual tokens, "
                "expected [n, P] of them; train it again"
            )
    if not any("bias" in part for part in parts):
        return list(parts)
    biased = [{"bias": np.zeros((1, len(part["key"])), np.float32), **part} for part in parts]
    beside = max(len(part["bias"]) for part in biased)
    return [_filled_up(part, beside - len(part["bias"])) for part in biased]


def _filled_up(part: Tensors, more: int) -> Tensors:
    tokens = more * part["bias"].shape[1]
    return {
        # Zeros with the idle bias: the attention gives them no weight.
        "key": np.pad(part["key"], [(0, tokens), (0, 0)]),
        "value": np.pad(part["value"], [(0, tokens), (0, 0)]),
        "bias": np.pad(part["bias"], [(0, more), (0, 0)], constant_values=IDLE_BIAS),
    }


def _in_peft(model: nn.Module, sites: Sequence[str]) -> bool:
    """Whether PEFT can run the prefix.

    It needs one stack of layers with a KV cache, and a prefix in every layer.
    """
    found = forward_facts(model).keys_and_values
    # PEFT stores one tensor for all layers of a stack, of one width, and hands it over as a KV
    # cache.
    one_stack = len({re.sub(r"\d+", "#", name) for name in found}) == 1
    one_width = len({width for pair in found.values() for width in pair}) == 1
    takes_cache = "past_key_values" in inspect.signature(model.forward).parameters
    return one_stack and one_width and takes_cache and set(sites) == set(found)


KIND = AdapterKind(
    PREFIX,
    PrefixSite,
    needs="attention that goes through transformers' attention interface",
    changes="adds P keys and values to attention layers",
    candidates=_candidates,
    shapes=_shapes,
    as_constants=True,
    start=_start,
    learning_rate=1e-2,
    mixes_outputs=True,
    same_shapes=_same_shapes,
    only_on_outputs=lambda tensors: "bias" in tensors,
    around=_around,
    bank_site=PrefixBankSite,
    bank_around=_bank_around,
    bank_first=frozenset({"shift"}),
    bank_shapes=_bank_shapes,
    in_peft=_in_peft,
)
