"""Icons in parts by base name: whatever is drawn alike for the same word, in any family, falls on one side."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence

from pidep.errors import TaskError
from pidep.gallery.icons.catalog import Icon, catalog

__all__ = ["groups", "parts"]


def groups(icons: Iterable[Icon]) -> dict[str, str]:
    """Base name to the group it belongs to: bases that one icon has as its names (`kin`) are of one group."""
    parent: dict[str, str] = {}

    def root(base: str) -> str:
        parent.setdefault(base, base)
        while parent[base] != base:
            parent[base] = parent[parent[base]]
            base = parent[base]
        return base

    for icon in icons:
        for other in icon.kin:
            first, second = sorted((root(icon.base), root(other)))
            parent[second] = first
        root(icon.base)
    return {base: root(base) for base in parent}


def parts(icons: Sequence[Icon], *, shares: Mapping[str, float], seed: int) -> dict[str, list[Icon]]:
    """Icons by part; a group falls by its own hash, so more icons or families never move one across.

    Groups are drawn over all installed families, not only over `icons`: a base is on the same side whatever is asked for.

    Raises:
        TaskError: the shares do not add up to 1.
    """
    if abs(sum(shares.values()) - 1.0) > 1e-9 or min(shares.values(), default=-1.0) < 0.0:
        raise TaskError(f"icons: shares {dict(shares)} must be at least 0 and add up to 1")
    of_base = groups(catalog())
    out: dict[str, list[Icon]] = {part: [] for part in shares}
    for icon in icons:
        out[_part_of(of_base[icon.base], shares, seed)].append(icon)
    return out


def _part_of(group: str, shares: Mapping[str, float], seed: int) -> str:
    """Where a number in [0, 1), drawn from the group's name and the seed, falls on the shares laid end to end."""
    left = int.from_bytes(hashlib.sha256(f"{seed}\n{group}".encode()).digest()[:8], "big") / 2**64
    *others, last = shares
    for part in others:
        left -= shares[part]
        if left < 0.0:
            return part
    return last
