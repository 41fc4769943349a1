"""Prompt-tuning: `prompt` [P, D] at the input embeddings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

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
from pidep.experts.peft_format import joined, virtual_tokens

__all__ = ["KIND"]

_START = training("how the tokens start")
_FIELDS = MappingProxyType(
    {
        **VIRTUAL_TOKENS,
        "prompt_tuning_init": _START,
        "prompt_tuning_init_text": _START,
        "tokenizer_name_or_path": _START,
        "tokenizer_kwargs": _START,
    }
)


class _Prompt(ExpertKind):
    name = "prompt"
    axes = MappingProxyType({"prompt": ("P", "D")})
    adapter = "pidep.adapters.kinds.prompt:KIND"
    peft_type = "PROMPT_TUNING"
    peft_fields = _FIELDS
    in_bank = True
    size_word = "virtual tokens"

    def size_of(self, tensors: Tensors) -> int:
        """The number of virtual tokens."""
        return len(tensors["prompt"])

    def bank_factors(self, tensors: Tensors, *, scaling: float) -> dict[str, Array]:
        """`prompt` [P, D], and `live` [P, 1]: 1 for each virtual token of the expert."""
        prompt = tensors["prompt"]
        return {"prompt": prompt, "live": np.ones((len(prompt), 1), np.float32)}

    def fill_bank_row(self, row: Array, group: BankGroup, sites: Sites, *, scaling: float) -> None:
        """The last rows, so that a short prompt stands right before the text.

        Relative positions and local attention then see no gap.
        """
        for column, site in enumerate(group.sites):
            if site in sites:
                factor = self.bank_factors(sites[site], scaling=scaling)[group.factor]
                row[column, len(row[column]) - len(factor) :] = factor

    def positions_before(self, sites: Sites, groups: Sequence[BankGroup]) -> int:
        """One for each virtual token."""
        return max(len(tensors["prompt"]) for tensors in sites.values())

    def why_unmixable(self, parts: Sequence[Sites]) -> str:
        """Prompts of different lengths: they are averaged token by token."""
        lengths = sorted({self.positions_before(sites, ()) for sites in parts})
        return "" if len(lengths) == 1 else unequal_tokens(lengths)

    def written_for_peft(self, sites: Sites, *, peft_can: bool | None) -> bool:
        """Unless PEFT is known not to run it; PEFT has one prompt, so one site."""
        return len(sites) == 1 and peft_can is not False

    def peft_config(self, sites: Sites, *, scaling: float, rank_stabilized: bool) -> dict[str, Any]:
        """Tokens and width."""
        tokens, width = next(iter(sites.values()))["prompt"].shape
        return {
            "num_transformer_submodules": 1,
            "num_virtual_tokens": tokens,
            "token_dim": width,
            # They mean nothing to a prompt. PEFT looks for them in the backbone's config all the
            # same, and gives up on DistilBERT's, which names them otherwise.
            "num_layers": 1,
            "num_attention_heads": 1,
        }

    def peft_tensors(self, sites: Sites) -> dict[str, Array]:
        """The virtual tokens."""
        return joined([tensors["prompt"] for tensors in sites.values()])

    def read_peft(
        self, folder: Path, config: Mapping[str, Any], tensors: Mapping[str, npt.NDArray[Any]]
    ) -> PeftAdapter:
        """The virtual tokens; raises as `ExpertKind.read_peft`."""
        (prompt,) = virtual_tokens(folder, config, tensors, layers=1, parts=1)
        return PeftAdapter(self.name, ({"prompt": prompt},))


KIND = _Prompt()
