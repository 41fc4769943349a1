"""Chance without a random number generator: results depend on a text and a seed alone. No torch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import TypeVar

__all__ = ["held_out", "in_order", "share"]

Item = TypeVar("Item")


def share(text: str, seed: int) -> float:
    """A number in [0, 1) that depends on the text and the seed only."""
    # SHA-256 and not Python's hash(), which differs from process to process
    return int.from_bytes(hashlib.sha256(f"{seed}\n{text}".encode()).digest()[:8], "big") / 2**64


def held_out(text: str, *, fraction: float, seed: int) -> bool:
    """Whether a text belongs to the test rows. Capitals and spaces do not matter."""
    return share(" ".join(text.lower().split()), seed) < fraction


def in_order(items: Iterable[Item], key: Callable[[Item], str], *, seed: int) -> list[Item]:
    """Items in an order drawn from their keys.

    A new item leaves the order of the others as it is.
    """
    return sorted(items, key=lambda item: (share(key(item), seed), key(item)))
