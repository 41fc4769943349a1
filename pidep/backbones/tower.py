"""One tower of a backbone that has two."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

__all__ = ["Tower", "TowerName"]

TowerName = Literal["text", "image"]


@dataclass(frozen=True)
class Tower:
    """A model that embeds texts or images. It is exported as a graph of its own."""

    name: TowerName
    prefixes: tuple[str, ...]
    """What the names of its modules begin with."""
    inputs: tuple[str, ...]
    """The tensors of `Backbone.prepare` that it reads."""
    forward: Callable[..., Tensor]
    """Named tensors of its rows to unit vectors `[N, D]` fp32."""
    padded_length: int | None = None
    """Tokens of every text, where padding is read as a part of the text."""
