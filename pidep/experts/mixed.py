"""A mixture of experts by reference to its parts: what a bank serves without folding it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeAlias

import numpy as np

from pidep.errors import ExpertError
from pidep.experts.folder import Expert
from pidep.experts.kind import Array
from pidep.experts.kinds import expert_kind
from pidep.experts.validation import require_valid

__all__ = ["MixedExpert", "Served", "head_of", "parts_of", "weights_of"]

_SUM_ERROR = 1e-3
"""α is a softmax; in fp32 its sum is off by far less."""


@dataclass(frozen=True)
class MixedExpert:
    """K experts of one kind, and the share α of each at every site.

    It answers as the mixture on outputs does that `Mixture.folded()` makes one expert of.

    Raises:
        ExpertError: the parts cannot be mixed, or α is not theirs.
    """

    head: Expert
    """Name, labels, template and lengths. Its own `sites` are not used."""
    parts: tuple[Expert, ...]
    alphas: Mapping[str, Sequence[float]]
    """Site to K shares of sum 1."""

    def __post_init__(self) -> None:
        where = f"mixture {self.head.name!r}"
        first = self.parts[0] if self.parts else self.head
        for part in (*self.parts, replace(self.head, sites=first.sites)):
            require_valid(part)
            for what, found, expected in (
                ("kind", part.kind, first.kind),
                ("backbone", part.backbone_digest, first.backbone_digest),
                ("sites", sorted(part.sites), sorted(first.sites)),
            ):
                if found != expected:
                    raise ExpertError(
                        f"{where}: {part.name!r} and {first.name!r} differ in {what}; mix experts "
                        "of one kind, backbone and choice of sites"
                    )
        if sorted(self.alphas) != sorted(first.sites) or not self.parts:
            raise ExpertError(
                f"{where}: has shares for {len(self.alphas)} sites, its parts act on "
                f"{len(first.sites)}; make it again"
            )
        for site, shares in self.alphas.items():
            alpha = np.asarray(shares, np.float64)
            # `not <=`: NaN fails, too.
            if (
                alpha.shape != (len(self.parts),)
                or alpha.min() < 0
                or not abs(alpha.sum() - 1) <= _SUM_ERROR
            ):
                raise ExpertError(
                    f"{where}: shares {list(shares)} at {site!r}, expected {len(self.parts)} of at "
                    "least 0 and of sum 1; make it again"
                )
        if why := expert_kind(first.kind).why_unmixable([part.sites for part in self.parts]):
            raise ExpertError(f"{where}: {why}")

    @cached_property
    def digest(self) -> str:
        """SHA-256 over everything that decides an answer: the head, the parts and their shares."""
        # The head without tensors, in the form whose digest covers labels, lengths and template.
        content = {
            "head": replace(self.head, sites={}).digest,
            "parts": [part.digest for part in self.parts],
            "alphas": {
                site: [float(np.float32(one)).hex() for one in shares]
                for site, shares in sorted(self.alphas.items())
            },
        }
        return "sha256:" + hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


Served: TypeAlias = Expert | MixedExpert
"""What a name of a server can mean."""


def head_of(served: Served) -> Expert:
    """Name, labels, template and lengths of what is served: the head of a mixture."""
    return served.head if isinstance(served, MixedExpert) else served


def parts_of(served: Served) -> tuple[Expert, ...]:
    """The experts whose tensors answer: the parts of a mixture, or the expert itself."""
    return served.parts if isinstance(served, MixedExpert) else (served,)


def weights_of(served: Served, sites: Sequence[str]) -> Array:
    """The graph's `weights` of an expert, `[K, S]` fp32, for the sites of a bank."""
    weights = np.ones((len(parts_of(served)), len(sites)), np.float32)
    if isinstance(served, MixedExpert):
        for column, site in enumerate(sites):
            # At other sites, all parts are zeros.
            if site in served.alphas:
                weights[:, column] = served.alphas[site]
    return weights
