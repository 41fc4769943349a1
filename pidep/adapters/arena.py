"""The tensors of K experts at all sites of a mixture as rows of one arena, so that one pass interpolates every site."""

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
    """Where one tensor of one site lies in a row."""

    start: int
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Elements."""
        return int(np.prod(self.shape, dtype=np.int64))


Layout = Sequence[Mapping[str, Slot]]
"""Site by site, tensor by tensor."""


class Arena(nn.Module):
    """K rows of P elements: the first `num_learned` are a parameter, the others are only read.

    Args:
        experts: `[K][S]` mappings of tensor names to arrays; all experts have tensors of the same shapes at a site.
        alpha_logits: `[K]` logits of each site, S of them; sites may share one.
    """

    learned: nn.Parameter
    frozen: Tensor
    tile_start: Tensor
    tile_site: Tensor
    site_tile: Tensor

    def __init__(
        self, experts: Sequence[Sequence[Mapping[str, Any]]], alpha_logits: Sequence[nn.Parameter], *, num_learned: int | None = None
    ) -> None:
        super().__init__()
        self.layout = _layout(experts[0])
        sizes = [sum(slot.size for slot in slots.values()) for slots in self.layout]
        if any(_layout(expert) != self.layout for expert in experts):
            raise ExpertError("mixture: the experts have tensors of different shapes; train them with the same --rank")
        index = ArenaIndex.of(sizes)
        rows = torch.zeros(len(experts), index.num_elements)
        for row, expert in zip(rows, experts, strict=True):
            for slots, tensors in zip(self.layout, expert, strict=True):
                for name, slot in slots.items():
                    row[slot.start : slot.start + slot.size] = torch.from_numpy(np.asarray(tensors[name], dtype=np.float32)).reshape(-1)
        count = len(experts) if num_learned is None else num_learned
        self.learned = nn.Parameter(rows[:count].clone())
        self.register_buffer("frozen", rows[count:].clone())
        for name in ("tile_start", "tile_site", "site_tile"):
            self.register_buffer(name, getattr(index, name), persistent=False)
        self.site_sizes = index.site_sizes
        # plain attributes: the logits are parameters of the sites
        self._alpha: list[Tensor] = list(alpha_logits)
        self._kept: tuple[Any, dict[int, Tensor]] | None = None

    @property
    def index(self) -> ArenaIndex:
        """For the kernels."""
        return ArenaIndex(self.site_sizes, self.tile_start, self.tile_site, self.site_tile)

    def rows(self) -> Tensor:
        """`[K, P]` every expert."""
        return torch.cat([self.learned, self.frozen])

    def mixed(self, site: int) -> dict[str, Tensor]:
        """φ̄ at a site; the first site asked after a change interpolates all of them, and the others only look it up."""
        if torch.compiler.is_compiling():  # a compiler fuses a site's own few operations, and cannot follow what is kept
            return self._mixed_alone(site)
        state = self._state()
        if self._kept is None or self._kept[0] != state:
            self._kept = (state, self._split(self._interpolated()))
        return {name: self._kept[1][slot.start].view(slot.shape) for name, slot in self.layout[site].items()}

    def forget(self) -> None:
        """Interpolate anew at the next use: a graph is for one backward pass."""
        self._kept = None

    def forget_graph(self) -> None:
        """As `forget`, unless nothing can be differentiated."""
        if self._kept is not None and any(part.requires_grad for part in self._kept[1].values()):
            self._kept = None

    def _state(self) -> tuple[Any, ...]:
        """Changes whenever what `_interpolated` gives would."""
        tensors = (self.learned, self.frozen, *self._alpha)
        wanted = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
        # moving a module to another device or precision gives its tensors other memory, and leaves their version as it was
        return (wanted, torch.is_inference_mode_enabled(), *((id(tensor), tensor.data_ptr(), tensor._version) for tensor in tensors))

    def _interpolated(self) -> Tensor:
        """`[P]`; a single expert is itself."""
        if len(self.learned) + len(self.frozen) == 1:
            mixed = self.rows()[0] if len(self.frozen) else self.learned[0]
        else:
            mixed = interpolate(self.learned, self.frozen, torch.stack([*self._alpha]), self.index)
        if mixed.requires_grad:
            mixed.register_hook(lambda _: self.forget())  # type: ignore[no-untyped-call]
        return mixed

    def _split(self, mixed: Tensor) -> dict[int, Tensor]:
        """Every tensor by where it starts: one operation, whose backward is one pass, too."""
        starts = [slot.start for slots in self.layout for slot in slots.values()]
        sizes = [slot.size for slots in self.layout for slot in slots.values()]
        lengths, end = [], 0
        for start, size in zip(starts, sizes, strict=True):
            lengths += [start - end, size]
            end = start + size
        return dict(zip(starts, mixed.split([*lengths, len(mixed) - end])[1::2], strict=True))  # type: ignore[no-untyped-call]

    def _mixed_alone(self, site: int) -> dict[str, Tensor]:
        alpha = torch.softmax(self._alpha[site], 0)
        stacked = self.stacked(site)
        if len(alpha) == 1:
            return {name: value[0] for name, value in stacked.items()}
        return {name: torch.tensordot(alpha, value, 1) for name, value in stacked.items()}

    def stacked(self, site: int) -> dict[str, Tensor]:
        """`[K, …]` every expert's tensors at a site."""
        if not len(self.frozen):
            return self.unpacked(self.learned, site)
        learned, frozen = self.unpacked(self.learned, site), self.unpacked(self.frozen, site)
        return {name: torch.cat([value, frozen[name]]) for name, value in learned.items()}

    def unpacked(self, rows: Tensor, site: int) -> dict[str, Tensor]:
        """The tensors at a site of rows `[n, P]`."""
        slots = self.layout[site].items()
        return {name: rows[:, slot.start : slot.start + slot.size].reshape(-1, *slot.shape) for name, slot in slots}


def _layout(expert: Sequence[Mapping[str, Any]]) -> list[dict[str, Slot]]:
    shapes = [{name: tuple(tensors[name].shape) for name in sorted(tensors)} for tensors in expert]
    sizes = [{name: int(np.prod(shape, dtype=np.int64)) for name, shape in site.items()} for site in shapes]
    found = []
    for site, size, span in zip(shapes, sizes, spans_of([sum(size.values()) for size in sizes]), strict=True):
        start, slots = span.start, {}
        for name, shape in site.items():
            slots[name] = Slot(start, shape)
            start += size[name]
        found.append(slots)
    return found
