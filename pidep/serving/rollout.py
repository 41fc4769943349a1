"""Which version of a name answers a row: the stable one, or a canary for a share of the rows.

A row's key decides, so the same key always meets the same version, on every server. A larger weight
keeps the keys that the canary has. The key is the request's `KEY`; a row without one has its own
content as its key, so equal rows get equal answers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pidep.artifacts.manifest import Manifest, Role
from pidep.inputs.row import Row

__all__ = ["Rollout", "content_key", "pin", "pinned", "rolled_out_of", "rollouts_of", "versions_of"]

_STEPS = 2.0**64


@dataclass(frozen=True)
class Rollout:
    """A name whose candidate is loaded."""

    name: str
    stable: str
    """Digest, as the others."""
    canary: str | None = None
    weight: float = 0.0
    """The canary's share."""
    shadow: str | None = None

    def role(self, key: bytes) -> Literal["stable", "canary"]:
        """Who answers a row of this key."""
        if self.canary is None:
            return "stable"
        # Salted: another canary meets other keys, so that no user meets every candidate.
        salt = f"{self.name}\0{self.canary}\0".encode()
        share = int.from_bytes(hashlib.blake2b(salt + key, digest_size=8).digest(), "big")
        return "canary" if share < self.weight * _STEPS else "stable"


def pin(name: str, role: Role) -> str:
    """What a client asks for to get this version of a name, whatever the weights.

    >>> pin("film", "canary")
    'film@canary'
    """
    return f"{name}@{role}"


def pinned(asked: str) -> str:
    """The name under which the bank holds what a client asks for.

    >>> pinned("film@stable"), pinned("film@canary")
    ('film', 'film@canary')
    """
    return asked.removesuffix("@stable")


def versions_of(manifest: Manifest) -> dict[str, str]:
    """What a bank holds: stable versions under their names, candidates as `film@canary`."""
    canaries, shadows = manifest.canaries or {}, manifest.shadows or {}
    return {
        **manifest.aliases,
        **{pin(name, "canary"): canary.digest for name, canary in canaries.items()},
        **{pin(name, "shadow"): digest for name, digest in shadows.items()},
    }


def rolled_out_of(manifest: Manifest) -> set[str]:
    """What a bank holds of the names with candidates, as `versions_of` calls it."""
    canaries, shadows = {*(manifest.canaries or {})}, {*(manifest.shadows or {})}
    return {
        *canaries,
        *shadows,
        *(pin(name, "canary") for name in canaries),
        *(pin(name, "shadow") for name in shadows),
    }


def rollouts_of(manifest: Manifest, held: Mapping[str, str]) -> dict[str, Rollout]:
    """The names with candidates, as far as their versions are in memory.

    Args:
        held: what is in memory, as `versions_of`. A version that was refused is not among them;
            then the stable version answers alone.
    """
    found = {}
    for name in sorted({*(manifest.canaries or {}), *(manifest.shadows or {})}):
        canary, shadow = held.get(pin(name, "canary")), held.get(pin(name, "shadow"))
        if name in held and (canary or shadow):
            weight = manifest.canaries[name].weight if canary and manifest.canaries else 0.0
            found[name] = Rollout(name, held[name], canary, weight, shadow)
    return found


def content_key(row: Row) -> bytes:
    """The key of a row that came without one."""
    columns = "" if row.columns is None else json.dumps(dict(row.columns), sort_keys=True)
    image = row.image if isinstance(row.image, bytes) else b""
    parts = (row.text.encode(), columns.encode(), hashlib.blake2b(image, digest_size=16).digest())
    # Lengths keep ("ab", "c") apart from ("a", "bc").
    return b"".join(len(part).to_bytes(8, "big") + part for part in parts)
