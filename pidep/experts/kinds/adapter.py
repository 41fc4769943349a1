"""Bottleneck adapters: `down` [W, D], `down_bias` [W], `up` [D, W], `up_bias` [D] at each site."""

from __future__ import annotations

from pidep.experts.kind import ExpertKind, Tensors

__all__ = ["KIND"]


class _Adapter(ExpertKind):
    name = "adapter"
    required = frozenset({"down", "down_bias", "up", "up_bias"})
    adapter = "pidep.adapters.kinds.adapter:KIND"

    def size_of(self, tensors: Tensors) -> int:
        """W, the width of the bottleneck."""
        return len(tensors["down"])


KIND = _Adapter()
