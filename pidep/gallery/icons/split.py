"""Icons in parts by base name: variants of one word fall on one side, in every family."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence

from pidep.errors import TaskError
from pidep.gallery.icons.catalog import Icon, catalog

__all__ = ["groups", "parts"]


def groups(icons: Iterable[Icon]) -> dict[str, str]:
    """Base name to group. Bases that are names of one icon (`kin`) share a group."""
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


def parts(
    icons: Sequence[Icon], *, shares: Mapping[str, float], seed: int
) -> dict[str, list[Icon]]:
    """Icons by part. A group's part follows from its own hash, so new icons move no group.

    Groups are made over all installed families, not only over `icons`, so that a base is always on
    the same side.

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
    """The part of a group: its hash, a number in [0, 1), on the shares laid end to end."""
    left = int.from_bytes(hashlib.sha256(f"{seed}\n{group}".encode()).digest()[:8], "big") / 2**64
    *others, last = shares
    for part in others:
        left -= shares[part]
        if left < 0.0:
            return part
    return last
