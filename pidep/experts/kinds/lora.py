"""LoRA: `lora_A` [r, in] and `lora_B` [out, r] at each site; ΔW = s·B A."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from pidep.errors import ExpertError
from pidep.experts.finite import is_finite_number
from pidep.experts.kind import Array, ExpertKind, PeftAdapter, Sites, Tensors, Truncated
from pidep.experts.kinds.lora_fields import LORA_FIELDS
from pidep.experts.kinds.lora_truncation import truncate
from pidep.experts.peft_format import TENSORS, finite

__all__ = ["KIND"]

_PREFIX = "base_model.model."  # PEFT wraps the backbone twice and names tensors from the outside


class _Lora(ExpertKind):
    name = "lora"
    adapter = "pidep.adapters.kinds.lora:KIND"
    axes = MappingProxyType({"lora_A": ("rank", "in"), "lora_B": ("out", "rank")})
    peft_type = "LORA"
    peft_fields = LORA_FIELDS
    only_in_peft = True
    in_bank = True
    size_word = "rank"

    def size_of(self, tensors: Tensors) -> int:
        """r, the rank."""
        return len(tensors["lora_A"])

    def scaling(self, alpha: float, size: int, *, rank_stabilized: bool = False) -> float:
        """s = alpha / r, or alpha / √r with rsLoRA (Kalajdzievski, 2023).

        The root keeps the update's size as the rank grows.
        """
        return alpha / (math.sqrt(size) if rank_stabilized else size)

    def named(self, sites: Sites) -> dict[str, Array]:
        """PEFT's names, so that the digest covers the file as it is."""
        return {
            f"{_PREFIX}{site}.{name}.weight": tensors[name]
            for site, tensors in sites.items()
            for name in ("lora_A", "lora_B")
        }

    def peft_config(self, sites: Sites, *, scaling: float, rank_stabilized: bool) -> dict[str, Any]:
        """Rank, alpha and target modules."""
        rank = self.size_of(next(iter(sites.values())))
        config = {
            "r": rank,
            "lora_alpha": scaling * (math.sqrt(rank) if rank_stabilized else rank),
            "lora_dropout": 0.0,
            "bias": "none",
            "target_modules": sorted(sites),
        }
        return config | {"use_rslora": True} if rank_stabilized else config

    def peft_tensors(self, sites: Sites) -> dict[str, Array]:
        """The factors by PEFT's names."""
        return self.named(sites)

    def read_peft(
        self, folder: Path, config: Mapping[str, Any], tensors: Mapping[str, npt.NDArray[Any]]
    ) -> PeftAdapter:
        """Sites, factors and scaling; raises as `ExpertKind.read_peft`."""
        rank, alpha = config.get("r"), config.get("lora_alpha")
        # Not above 2**31: a tensor file has no such rank, and no float holds a number that large.
        if (
            not isinstance(rank, int)
            or isinstance(rank, bool)
            or not 1 <= rank < 2**31
            or not is_finite_number(alpha)
        ):
            raise ExpertError(
                f"{folder / 'adapter_config.json'}: expected r >= 1 and a finite lora_alpha, "
                f"found r={str(rank)[:40]}, lora_alpha={str(alpha)[:40]}"
            )
        stabilized = bool(config.get("use_rslora"))
        factors = _factors(tensors, rank, folder / TENSORS)
        sites = tuple(sorted(factors))
        layers = tuple(
            {name: factors[site][name] for name in ("lora_A", "lora_B")} for site in sites
        )
        scaling = self.scaling(float(alpha or 0), rank, rank_stabilized=stabilized)
        return PeftAdapter("lora", layers, sites, scaling, stabilized)

    def truncate(self, sites: Sites, *, scaling: float, rank: int, max_error: float) -> Truncated:
        """The truncated SVD of every s·BA."""
        return truncate(sites, scaling=scaling, rank=rank, max_error=max_error)

    def graph_inputs(self, tensors: Tensors, *, scaling: float) -> dict[str, Array]:
        """Olive's: `lora_A.weight` [in, r], and `lora_B.weight` [r, out] with the scaling."""
        return {
            "lora_A.weight": np.ascontiguousarray(tensors["lora_A"].T),
            "lora_B.weight": np.ascontiguousarray(tensors["lora_B"].T * np.float32(scaling)),
        }

    def bank_factors(self, tensors: Tensors, *, scaling: float) -> dict[str, Array]:
        """`A` [r, in] as it is; `B` [r, out], transposed, with the scaling folded in."""
        return {"A": tensors["lora_A"], "B": tensors["lora_B"].T * np.float32(scaling)}


def _factors(
    tensors: Mapping[str, npt.NDArray[Any]], rank: int, path: Path
) -> dict[str, dict[str, Array]]:
    """Site to both factors."""
    factors: dict[str, dict[str, Array]] = {}
    for name, array in tensors.items():
        match = re.fullmatch(r"base_model\.model\.(.+)\.(lora_[AB])\.weight", name)
        if not match:
            raise ExpertError(
                f"{path}: unexpected tensor {name!r}; "
                "expected base_model.model.<site>.lora_A.weight or lora_B.weight"
            )
        axis = 0 if match[2] == "lora_A" else 1
        if array.dtype.kind != "f" or array.ndim != 2 or array.shape[axis] != rank:
            raise ExpertError(
                f"{path}: {name} is {array.dtype} {array.shape}, "
                f"expected a float matrix of rank {rank}"
            )
        factors.setdefault(match[1], {})[match[2]] = finite(array, name, path)
    if not factors:
        raise ExpertError(f"{path}: holds no LoRA tensors")
    for site, pair in factors.items():
        if len(pair) != 2:
            raise ExpertError(
                f"{path}: site {site!r} has {next(iter(pair))} only; both lora_A and lora_B are "
                "needed"
            )
    return factors


KIND = _Lora()
