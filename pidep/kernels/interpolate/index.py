"""The sites' places in an arena `[K, P]`, and the tiles that its passes are cut into."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["GRAIN", "ArenaIndex", "Span", "spans_of"]

GRAIN = 1024
"""Elements. Every site starts at a multiple of it, so that no pass masks and every load is aligned.
"""
_TILES = 2048
"""Roughly the number of tiles that keeps a large GPU busy. A longer arena has longer tiles."""
_MAX_GRAINS = 16


class Span(NamedTuple):
    """Elements `start` to `stop` of an arena row."""

    start: int
    stop: int


def spans_of(sizes: Sequence[int]) -> list[Span]:
    """The spans of parts with these sizes, one after another, each padded to whole grains."""
    starts = [0, *accumulate(-(-size // GRAIN) * GRAIN for size in sizes)]
    return [Span(start, start + size) for start, size in zip(starts, sizes, strict=False)]


# eq=False: a comparison of tensors is a tensor, which has no truth value.
@dataclass(frozen=True, eq=False)
class ArenaIndex:
    """The sites of an arena, as the kernels read them.

    Every pass walks over tiles: runs of at most 16 grains of one site. Tensors are int32, on the
    arena's device.
    """

    site_sizes: tuple[int, ...]
    """Elements of each site, without padding."""
    tile_start: Tensor
    """First grain of each tile, `[N + 1]`."""
    tile_site: Tensor
    """Site of each tile, `[N]`."""
    site_tile: Tensor
    """First tile of each site, `[S + 1]`."""

    @classmethod
    def of(
        cls, site_sizes: Sequence[int], *, device: torch.device | str | None = None
    ) -> ArenaIndex:
        """The index of sites with these sizes, in this order.

        Raises:
            ValueError: a size is negative.
        """
        if any(size < 0 for size in site_sizes):
            raise ValueError(f"arena: site sizes are numbers of elements, found {min(site_sizes)}")
        grains = [-(-size // GRAIN) for size in site_sizes]
        # A long tile reads its site's softmax once for more elements. Few tiles would leave parts
        # of a GPU idle.
        length = min(_MAX_GRAINS, max(1, sum(grains) // _TILES))
        tiles_of = [-(-count // length) for count in grains]
        starts, sites = [0], []
        for site, (count, tiles) in enumerate(zip(grains, tiles_of, strict=True)):
            first = starts[-1]
            starts += [first + min(count, length * (tile + 1)) for tile in range(tiles)]
            sites += [site] * tiles
        tensors = (
            torch.tensor(values, dtype=torch.int32, device=device)
            for values in (starts, sites, [0, *accumulate(tiles_of)])
        )
        return cls(tuple(site_sizes), *tensors)

    @property
    def num_sites(self) -> int:
        """S, the number of sites."""
        return len(self.site_sizes)

    @property
    def num_elements(self) -> int:
        """P, padding included."""
        return sum(-(-size // GRAIN) * GRAIN for size in self.site_sizes)

    @property
    def spans(self) -> list[Span]:
        """The span of each site."""
        return spans_of(self.site_sizes)

    def to(self, device: torch.device | str) -> ArenaIndex:
        """The same index on another device."""
        moved = (tensor.to(device) for tensor in (self.tile_start, self.tile_site, self.site_tile))
        return ArenaIndex(self.site_sizes, *moved)


def runs_of(tile_start: Tensor, site_tile: Tensor) -> list[Span]:
    """Elements of each site with padding, from the index's tensors."""
    # Read from the tensors: a custom operator takes tensors, and no `ArenaIndex`.
    bounds = (tile_start.long()[site_tile.long()] * GRAIN).tolist()
    return [Span(start, stop) for start, stop in pairwise(bounds)]
