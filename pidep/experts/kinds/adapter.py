"""Bottleneck adapters: `down` [W, D], `down_bias` [W], `up` [D, W], `up_bias` [D] at each site."""

from __future__ import annotations

from types import MappingProxyType

from pidep.experts.kind import Array, ExpertKind, Tensors

__all__ = ["KIND"]


class _Adapter(ExpertKind):
    name = "adapter"
    axes = MappingProxyType(
        {"down": ("W", "D"), "down_bias": ("W",), "up": ("D", "W"), "up_bias": ("D",)}
    )
    adapter = "pidep.adapters.kinds.adapter:KIND"
    in_bank = True
    size_word = "bottleneck width"

    def size_of(self, tensors: Tensors) -> int:
        """W, the width of the bottleneck."""
        return len(tensors["down"])

    def bank_factors(self, tensors: Tensors, *, scaling: float) -> dict[str, Array]:
        """`down` and `up` [W, D], `hidden_bias` [W, 1] and `bias` [1, D].

        A unit of zeros adds nothing: relu(0) times a zero row of `up`.
        """
        return {
            "down": tensors["down"],
            "hidden_bias": tensors["down_bias"][:, None],
            "up": tensors["up"].T,
            "bias": tensors["up_bias"][None],
        }


KIND = _Adapter()
