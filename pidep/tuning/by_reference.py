"""What a run learned, as a mixture by reference to its parts: what a bank serves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from pidep.adapters.mixture import Mixture
from pidep.experts.folder import Expert
from pidep.experts.kind import Array
from pidep.experts.mixed import MixedExpert

__all__ = ["mixture_by_reference"]


def mixture_by_reference(
    folded: Expert, mixture: Mixture, given: Sequence[Expert]
) -> MixedExpert | None:
    """The mixture by reference; None where the folded expert is no larger than a part.

    A part that training left as it was is the given expert itself, so a bank that serves the expert
    of this digest stores it once.

    Args:
        folded: the mixture as one expert; gives name, labels, template and lengths.
        mixture: K experts as they are now, and their α.
        given: those K experts before training, in the same order.
    """
    if not mixture.folds_larger:
        return None
    head = replace(folded, sites={}, scaling=1.0)
    parts = [
        _part(head, before, mixture.part(number), number) for number, before in enumerate(given)
    ]
    return MixedExpert(head, tuple(parts), mixture.alphas())


def _part(
    head: Expert, before: Expert, now: Mapping[str, Mapping[str, Array]], number: int
) -> Expert:
    if all(_same(before.sites[site], now[site]) for site in now):
        return before
    # The run's own labels: a part that was trained here is an expert of this task.
    return replace(
        head,
        name=f"{head.name}-part-{number}"[:128],
        sites=dict(now),
        scaling=before.scaling,
        metrics={},
        provenance={},
        peft=before.peft,
        rank_stabilized=before.rank_stabilized,
    )


def _same(before: Mapping[str, Array], now: Mapping[str, Array]) -> bool:
    """Whether tensors are equal but for idle units, which a mixture adds to the smaller parts."""
    return all(
        name in before and _equal_but_for_zeros(before[name], array)
        for name, array in now.items()
        if name in before or np.any(array)
    )


def _equal_but_for_zeros(before: Array, now: Array) -> bool:
    if before.ndim != now.ndim or any(a > b for a, b in zip(before.shape, now.shape, strict=True)):
        return False
    inside = tuple(slice(size) for size in before.shape)
    return np.array_equal(before, now[inside]) and np.count_nonzero(now) == np.count_nonzero(before)
