"""BitFit: `bias` [D] at each site, which is added to the backbone's own."""

from __future__ import annotations

from types import MappingProxyType

from pidep.experts.kind import Array, ExpertKind, Tensors

__all__ = ["KIND"]


class _BitFit(ExpertKind):
    name = "bitfit"
    axes = MappingProxyType({"bias": ("D",)})
    adapter = "pidep.adapters.kinds.bitfit:KIND"
    in_bank = True

    def size_of(self, tensors: Tensors) -> int:
        """1: a change of a bias has no size to choose."""
        return 1

    def bank_factors(self, tensors: Tensors, *, scaling: float) -> dict[str, Array]:
        """`bias` [1, D]."""
        return {"bias": tensors["bias"][None]}


KIND = _BitFit()
