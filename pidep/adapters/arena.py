"""The tensors of K experts as rows of one matrix, so that one kernel pass interpolates
all sites.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pidep.errors import ExpertError
from pidep.kernels.interpolate import ArenaIndex, interpolate, spans_of

__all__ = ["Arena", "Layout", "Slot"]


@dataclass(frozen=True)
class Slot:
    """The place of one tensor of one site in a row."""

    start: int
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(np.prod(self.shape, dtype=np.int64))


Layout = Sequence[Mapping[str, Slot]]
"""For each site, tensor names to slots."""


class Arena(nn.Module):
    """K rows of P elements. The first `num_learned` rows are a parameter; the others are constant.

    Args:
        experts: `[K][S]` mappings of tensor names to arrays. At a site, all experts have tensors
            of the same shapes.
        alpha_logits: for each of S sites, its logits `[K]`. Sites may share a parameter.
    """

    learned: nn.Parameter
    frozen: Tensor
    tile_start: Tensor
    tile_site: Tensor
    site_tile: Tensor

    def __init__(
        self,
        experts: Sequence[Sequence[Mapping[str, Any]]],
        alpha_logits: Sequence[nn.Parameter],
        *,
        num_learned: int | None = None,
    ) -> None:
        super().__init__()
        self.layout = _layout(experts[0])
        sizes = [sum(slot.size for slot in slots.values()) for slots in self.layout]
        if any(_layout(expert) != self.layout for expert in experts):
            raise ExpertError(
                "mixture: the experts have tensors of different shapes; train them with the same "
                "`rank`"
            )
        index = ArenaIndex.of(sizes)
        # Zeros, not empty memory: the padding takes part in every pass, and NaN times zero is NaN.
        rows = torch.zeros(len(experts), index.num_elements)
        for row, expert in zip(rows, experts, strict=True):
            for slots, tensors in zip(self.layout, expert, strict=True):
                for name, slot in slots.items():
                    row[slot.start : slot.start + slot.size] = torch.from_numpy(
                        np.asarray(tensors[name], dtype=np.float32)
                    ).reshape(-1)
        count = len(experts) if num_learned is None else num_learned
        # Copies, so that the matrix of all rows can be freed. Frozen rows get neither a gradient
        # nor optimizer state.
        self.learned = nn.Parameter(rows[:count].clone())
        self.register_buffer("frozen", rows[count:].clone())
        for name in ("tile_start", "tile_site", "site_tile"):
            # Buffers, so that `module.to(device)` moves them with the rows.
            self.register_buffer(name, getattr(index, name), persistent=False)
        self.site_sizes = index.site_sizes
        # A plain attribute, not a submodule: the logits are parameters of the sites.
        self.alpha_logits: list[Tensor] = list(alpha_logits)
        # The mixture of the last pass, with the state that it belongs to.
        self.kept: tuple[Any, dict[int, Tensor]] | None = None

    @property
    def index(self) -> ArenaIndex:
        """The layout that the kernels read."""
        return ArenaIndex(self.site_sizes, self.tile_start, self.tile_site, self.site_tile)

    def rows(self) -> Tensor:
        """Every expert, `[K, P]`."""
        return torch.cat([self.learned, self.frozen])

    def mixed(self, site: int) -> dict[str, Tensor]:
        """φ̄ at a site. The first call after a change interpolates all sites.

        Later calls look it up.
        """
        # A compiler fuses a site's few operations itself, and cannot follow a Python-side cache.
        if torch.compiler.is_compiling():
            return self._mixed_alone(site)
        state = self._state()
        if self.kept is None or self.kept[0] != state:
            self.kept = (state, self._split(self._interpolated()))
        return {
            name: self.kept[1][slot.start].view(slot.shape)
            for name, slot in self.layout[site].items()
        }

    def forget(self) -> None:
        """Drop the cached mixture. Its graph serves one backward pass only."""
        self.kept = None

    def forget_graph(self) -> None:
        """Drop the cached mixture if it has a graph."""
        if self.kept is not None and any(part.requires_grad for part in self.kept[1].values()):
            self.kept = None

    def _state(self) -> tuple[Any, ...]:
        """Cache key of `_interpolated()`."""
        tensors = (self.learned, self.frozen, *self.alpha_logits)
        # A mixture made without a graph cannot serve a pass that needs gradients.
        wanted = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
        # Moving a module to another device or precision replaces a tensor's memory and keeps its
        # version, so the key holds both.
        return (
            wanted,
            torch.is_inference_mode_enabled(),
            *((id(tensor), tensor.data_ptr(), tensor._version) for tensor in tensors),
        )

    def _interpolated(self) -> Tensor:
        """The mixture of all sites, `[P]`. A single expert is returned as it is."""
        # No pass for one expert: its softmax is 1, and an exported graph stays free of the kernel.
        if len(self.learned) + len(self.frozen) == 1:
            mixed = self.rows()[0] if len(self.frozen) else self.learned[0]
        else:
            mixed = interpolate(
                self.learned, self.frozen, torch.stack([*self.alpha_logits]), self.index
            )
        if mixed.requires_grad:
            # The graph behind the cached mixture is freed by its backward pass, so the cache must
            # go with it.
            mixed.register_hook(lambda _: self.forget())  # type: ignore[no-untyped-call]
        return mixed

    def _split(self, mixed: Tensor) -> dict[int, Tensor]:
        """Start to tensor, by one `split`: its backward is a single pass, too."""
        starts = [slot.start for slots in self.layout for slot in slots.values()]
        sizes = [slot.size for slots in self.layout for slot in slots.values()]
        # Padding between sites is split off as parts of its own and dropped, because split() needs
        # every element.
        lengths, end = [], 0
        for start, size in zip(starts, sizes, strict=True):
            lengths += [start - end, size]
            end = start + size
        parts = mixed.split([*lengths, len(mixed) - end])  # type: ignore[no-untyped-call]
        return dict(zip(starts, parts[1::2], strict=True))

    def _mixed_alone(self, site: int) -> dict[str, Tensor]:
        alpha = torch.softmax(self.alpha_logits[site], 0)
        stacked = self.stacked(site)
        if len(alpha) == 1:
            return {name: value[0] for name, value in stacked.items()}
        return {name: torch.tensordot(alpha, value, 1) for name, value in stacked.items()}

    def stacked(self, site: int) -> dict[str, Tensor]:
        """Every expert's tensors at a site, `[K, …]`."""
        if not len(self.frozen):
            return self.unpacked(self.learned, site)
        learned, frozen = self.unpacked(self.learned, site), self.unpacked(self.frozen, site)
        return {name: torch.cat([value, frozen[name]]) for name, value in learned.items()}

    def unpacked(self, rows: Tensor, site: int) -> dict[str, Tensor]:
        """The tensors of rows `[n, P]` at a site."""
        slots = self.layout[site].items()
        return {
            name: rows[:, slot.start : slot.start + slot.size].reshape(-1, *slot.shape)
            for name, slot in slots
        }


def _layout(expert: Sequence[Mapping[str, Any]]) -> list[dict[str, Slot]]:
    # Sorted, so that the layout does not depend on the order in which a file lists its tensors.
    shapes = [{name: tuple(tensors[name].shape) for name in sorted(tensors)} for tensors in expert]
    sizes = [
        {name: int(np.prod(shape, dtype=np.int64)) for name, shape in site.items()}
        for site in shapes
    ]
    found = []
    for site, size, span in zip(
        shapes, sizes, spans_of([sum(size.values()) for size in sizes]), strict=True
    ):
        start, slots = span.start, {}
        for name, shape in site.items():
            slots[name] = Slot(start, shape)
            start += size[name]
        found.append(slots)
    return found
