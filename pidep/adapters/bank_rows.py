"""What the rows of a batch have in a bank: the factors of their experts, gathered site by site."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pidep.adapters import row_ops
from pidep.experts.kind import BankGroup, bank_sites

__all__ = ["BankLayout", "BankRows", "bank_rows", "running_bank"]


@dataclass(frozen=True)
class _Pack:
    """Sites of a group whose rows are gathered at once."""

    group: int
    sites: tuple[str, ...]
    number: int
    """Among the packs of its group with as many sites."""
    alike: tuple[tuple[str, ...], ...]
    """All of those packs."""


class BankLayout:
    """Where the factors of each site lie in a bank's inputs.

    Args:
        groups: the bank's inputs.
        together: sites that read the same input.
        shared: kind and factor of those factors that such sites use together.
    """

    def __init__(
        self,
        groups: Sequence[BankGroup],
        together: Sequence[tuple[str, ...]],
        shared: Collection[tuple[str, str]],
    ) -> None:
        self.groups = tuple(groups)
        self.sites = bank_sites(groups)
        self.packs: dict[tuple[str, str, str], _Pack] = {}
        for number, group in enumerate(self.groups):
            packs = _packs(group, together if (group.kind, group.factor) in shared else ())
            for at, pack in enumerate(packs):
                alike = tuple(one for one in packs if len(one) == len(pack))
                place = sum(len(one) == len(pack) for one in packs[:at])
                for site in pack:
                    self.packs[group.kind, group.factor, site] = _Pack(number, pack, place, alike)


def _packs(group: BankGroup, together: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """The group's sites in packs, in the group's order."""
    of = {site: names for names in together for site in names}
    packs: dict[tuple[str, ...], list[str]] = {}
    for site in group.sites:
        packs.setdefault(of.get(site, (site,)), []).append(site)
    return [tuple(pack) for pack in packs.values()]


class BankRows:
    """The experts of a batch's rows, for one forward pass.

    G is the number of rows, or 1 where all rows name the same expert. K is the number of experts
    that a row names; all but one of them can be slot 0 of weight 0.

    Args:
        factors: a tensor `[E, S, size, width]` for each group of the layout.
        slots: `[G, K]` int64, the experts of each row.
        weights: `[G, K, all sites]` fp32, the share of each expert at each site.
        like: `[B, …]`, any tensor of the batch.
    """

    def __init__(
        self,
        layout: BankLayout,
        factors: Sequence[Tensor],
        slots: Tensor,
        weights: Tensor,
        *,
        like: Tensor,
    ) -> None:
        self.layout = layout
        self.like = like
        self._slots = slots
        # In the experts' precision: they may be in fp16.
        self._weights = weights.to(factors[0].dtype)
        # Rows of all experts and sites one below the other: each site gathers its own rows out of
        # them. One gather for all sites would need a copy more, to split what it gathered.
        self._flat = [factor.view(-1, factor.shape[-1]) for factor in factors]
        self._indices: dict[tuple[int, int], Tensor] = {}
        self._shares: dict[tuple[int, tuple[int, ...]], Tensor] = {}
        self._hidden: dict[tuple[str, ...], tuple[Tensor, list[Tensor]]] = {}

    def own(self, kind: str, factor: str, site: str) -> Tensor:
        """A factor of the rows' experts, `[G, K·size, width]`.

        Of the pack of sites, `[G, n·K·size, width]`, where the kind shares the factor.
        """
        pack = self.layout.packs[kind, factor, site]
        group, size = self.layout.groups[pack.group], len(pack.sites)
        if (pack.group, size) not in self._indices:
            columns = torch.tensor([group.sites.index(name) for one in pack.alike for name in one])
            places = columns[:, None, None] * group.size + torch.arange(group.size)
            stride = len(group.sites) * group.size
            self._indices[pack.group, size] = row_ops.index(
                self._slots, places.to(self._slots.device), stride
            )
        index = row_ops.part(self._indices[pack.group, size], 1, pack.number, len(pack.alike))
        return nn.functional.embedding(index, self._flat[pack.group])

    def weights(self, kind: str, factor: str, site: str) -> Tensor:
        """The weight of each row of `own`, `[G, 1, K·size]`; of a pack `[G, 1, n·K·size]`."""
        pack = self.layout.packs[kind, factor, site]
        size = self.layout.groups[pack.group].size
        columns = tuple(self.layout.sites.index(name) for one in pack.alike for name in one)
        if (size, columns) not in self._shares:
            numbers = torch.tensor(columns, device=self._weights.device)
            self._shares[size, columns] = row_ops.weigh(self._weights, numbers, size)
        return row_ops.part(self._shares[size, columns], 2, pack.number, len(pack.alike))

    def hidden(self, kind: str, factor: str, site: str, x: Tensor) -> Tensor:
        """x times the site's own rows of a shared factor, weighted: `[B, T, K·size]`.

        Sites of one pack share the product. The first one that is asked for computes it.
        """
        pack = self.layout.packs[kind, factor, site]
        known = self._hidden.get(pack.sites)
        if known is None or known[0] is not x:
            own = self.own(kind, factor, site)
            all_of = row_ops.multiply(
                row_ops.matmul(x, own, transposed=True), self.weights(kind, factor, site)
            )
            count = len(pack.sites)
            parts = [row_ops.part(all_of, 2, number, count) for number in range(count)]
            known = self._hidden[pack.sites] = (x, parts if count > 1 else [all_of])
        return known[1][pack.sites.index(site)]

    def size(self, kind: str, factor: str, site: str) -> int:
        """Rows that one expert has of a factor."""
        return self.layout.groups[self.layout.packs[kind, factor, site].group].size

    def expanded(self, own: Tensor) -> Tensor:
        """`[G, …]` as `[B, …]`."""
        return row_ops.expand(own, self.like)


_RUNNING: list[BankRows] = []


@contextmanager
def bank_rows(rows: BankRows) -> Iterator[None]:
    """Give the bank sites the experts of the batch's rows, for one forward pass.

    The rows are on a module-level stack because `torch.export` copies modules and loses what was
    set on them afterwards.
    """
    _RUNNING.append(rows)
    try:
        yield
    finally:
        _RUNNING.pop()


def running_bank() -> BankRows:
    """The experts of the running pass."""
    return _RUNNING[-1]
