"""Prefix-tuning: `key` and `value` [P, heads × head_dim] at each attention layer.

An optional `bias` [n, P] makes it n prefixes side by side in the same P positions (decision 009).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from pidep.errors import ExpertError
from pidep.experts.kind import (
    Array,
    BankGroup,
    ExpertKind,
    PeftAdapter,
    Sites,
    Tensors,
    unequal_tokens,
)
from pidep.experts.peft_fields import VIRTUAL_TOKENS, training
from pidep.experts.peft_format import in_layer_order, joined, virtual_tokens

__all__ = ["KIND"]

_FIELDS = MappingProxyType(
    {
        **VIRTUAL_TOKENS,
        # A projected prefix is saved as what the projection makes of it.
        "prefix_projection": training("how the tokens were made; saved is what they became"),
        "encoder_hidden_size": training("width of the projection"),
        "init_weights": training("how the tokens start"),
    }
)


class _Prefix(ExpertKind):
    name = "prefix"
    axes = MappingProxyType({"key": ("T", "K"), "value": ("T", "V"), "bias": ("n", "P")})
    adapter = "pidep.adapters.kinds.prefix:KIND"
    optional = frozenset({"bias"})
    peft_type = "PREFIX_TUNING"
    peft_fields = _FIELDS
    in_bank = True
    size_word = "virtual tokens"

    def size_of(self, tensors: Tensors) -> int:
        """The number of virtual tokens."""
        return len(tensors["key"])

    def check_tensors(self, tensors: Tensors, *, where: str) -> None:
        """As for every kind; n prefixes of P tokens are n · P rows."""
        super().check_tensors(tensors, where=where)
        if "bias" in tensors and tensors["bias"].size != len(tensors["key"]):
            raise ExpertError(
                f"{where}: bias is {tensors['bias'].shape} for {len(tensors['key'])} virtual "
                "tokens, expected one number for each; train it again"
            )

    def bank_factors(self, tensors: Tensors, *, scaling: float) -> dict[str, Array]:
        """`key` and `value` [n·P, H], `bias` and `live` [n·P, 1]; sometimes `shift` [1, 1].

        `live` is 1 for each virtual token of the expert. The graph hides tokens whose `live` is 0.
        `shift` is the number of positions that the prefix takes before the text.
        """
        key = tensors["key"]
        live = np.ones((len(key), 1), np.float32)
        factors = {
            "key": key,
            "value": tensors["value"],
            "live": live,
            "bias": tensors["bias"].reshape(-1, 1) if "bias" in tensors else 0 * live,
        }
        return factors | ({"shift": tensors["shift"]} if "shift" in tensors else {})

    def fill_bank_row(self, row: Array, group: BankGroup, sites: Sites, *, scaling: float) -> None:
        """As for every kind; a prefix takes positions only where every attention layer has one."""
        if group.factor != "shift":
            super().fill_bank_row(row, group, sites, scaling=scaling)
        else:
            row[:] = self.positions_before(sites, [group])

    def positions_before(self, sites: Sites, groups: Sequence[BankGroup]) -> int:
        """P where every attention layer has a prefix, as in PEFT; else 0."""
        if not any(set(sites) == set(group.sites) for group in groups if group.factor == "shift"):
            return 0
        return self._positions(sites)

    def _positions(self, sites: Sites) -> int:
        first = next(iter(sites.values()))
        return int(first["bias"].shape[1]) if "bias" in first else len(first["key"])

    def why_unmixable(self, parts: Sequence[Sites]) -> str:
        """Prefixes that take different numbers of positions before the text."""
        lengths = sorted({self._positions(sites) for sites in parts})
        return "" if len(lengths) == 1 else unequal_tokens(lengths)

    def written_for_peft(self, sites: Sites, *, peft_can: bool | None) -> bool:
        """Only where PEFT is known to run it: every layer of one stack, and no bias."""
        return peft_can is True and not any("bias" in tensors for tensors in sites.values())

    def peft_config(self, sites: Sites, *, scaling: float, rank_stabilized: bool) -> dict[str, Any]:
        """Width and heads are left out: PEFT finds them in the backbone's config."""
        return {
            "num_transformer_submodules": 1,
            "num_virtual_tokens": self.size_of(next(iter(sites.values()))),
            "num_layers": len(sites),
            "prefix_projection": False,
        }

    def peft_tensors(self, sites: Sites) -> dict[str, Array]:
        """One tensor, a layer's keys before its values."""
        # PEFT stores layers by position, so layer 10 must come after layer 9.
        ordered = [sites[name] for name in in_layer_order(list(sites))]
        return joined([tensors[name] for tensors in ordered for name in ("key", "value")])

    def read_peft(
        self, folder: Path, config: Mapping[str, Any], tensors: Mapping[str, npt.NDArray[Any]]
    ) -> PeftAdapter:
        """Keys and values of every layer; raises as `ExpertKind.read_peft`."""
        submodules = config.get("num_transformer_submodules") or 1
        if submodules != 1:
            raise ExpertError(
                f"{folder / 'adapter_config.json'}: num_transformer_submodules={submodules} "
                "(encoder-decoder) is not supported; train the expert with pidep"
            )
        parts = virtual_tokens(folder, config, tensors, layers=config.get("num_layers"), parts=2)
        pairs = zip(parts[::2], parts[1::2], strict=True)
        return PeftAdapter(
            self.name,
            tuple(
                {"key": np.ascontiguousarray(key), "value": np.ascontiguousarray(value)}
                for key, value in pairs
            ),
        )


KIND = _Prefix()
