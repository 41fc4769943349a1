"""What one kind of expert is on disk and in a bank. No torch.

`pidep.adapters` has the other half: how the kind acts on a model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from pidep.errors import ExpertError
from pidep.experts.peft_fields import PeftField

__all__ = [
    "Array",
    "BankGroup",
    "ExpertKind",
    "PeftAdapter",
    "Sites",
    "Tensors",
    "Truncated",
    "bank_sites",
    "unequal_tokens",
]

Array = npt.NDArray[np.float32]
Tensors = Mapping[str, Array]
"""One expert's tensors at one site, by name."""
Sites = Mapping[str, Tensors]
"""Site to tensors."""


@dataclass(frozen=True)
class PeftAdapter:
    """The content of a PEFT folder."""

    kind: str
    layers: tuple[Tensors, ...]
    """The tensors of each site. LoRA: in the order of `sites`. Prompt: one. Prefix: by layer."""
    sites: tuple[str, ...] = ()
    """The sites of a LoRA. A prompt and a prefix do not name theirs."""
    scaling: float = 1.0
    rank_stabilized: bool = False


@dataclass(frozen=True)
class BankGroup:
    """Sites whose factors of one name have one width, stacked into one graph input `[E, S, size,
    width]`.
    """

    input: str
    """Name of the graph's input."""
    factor: str
    """Which factor of the kind, see `ExpertKind.bank_factors`."""
    width: int
    sites: tuple[str, ...]
    size: int
    """Rows that an expert has room for at a site: rank, bottleneck width, virtual tokens, or 1."""
    kind: str = "lora"


def bank_sites(groups: Sequence[BankGroup]) -> tuple[str, ...]:
    """The sites of a bank, each once: the last axis of the graph's `weights`."""
    return tuple(dict.fromkeys(site for group in groups for site in group.sites))


def unequal_tokens(lengths: Sequence[int]) -> str:
    """Why experts with different numbers of virtual tokens cannot be mixed."""
    return (
        f"its parts have {' and '.join(map(str, lengths))} virtual tokens; train them with one "
        "`rank`"
    )


@dataclass(frozen=True)
class Truncated:
    """An expert of a smaller rank, with its error."""

    sites: dict[str, dict[str, Array]]
    """Tensors in fp32; the scaling is 1."""
    errors: dict[str, float]
    """Site to ‖ΔW − ΔW_r‖ / ‖ΔW‖ (Frobenius), in [0, 1]."""

    @property
    def worst(self) -> tuple[str, float]:
        """The site with the largest error, and the error."""
        site = max(self.errors, key=lambda name: self.errors[name])
        return site, self.errors[site]


class ExpertKind(ABC):
    """One kind of expert.

    A kind is a subclass in `pidep/experts/kinds/NAME.py`, which ends with its instance `KIND`.
    Other packages add kinds through the entry points of `pidep.plugins`.
    """

    name: str
    adapter: str
    """`module:object` of the `AdapterKind` that lets experts of this kind act on a torch module."""
    axes: Mapping[str, tuple[str, ...]] = MappingProxyType({})
    """Tensor to axis names; at a site, axes of one name have one length. Empty: no check."""
    optional: frozenset[str] = frozenset()
    """Tensors that a site may have beside those it must have."""
    peft_type: str | None = None
    """PEFT's name of the kind, where PEFT has it."""
    peft_fields: Mapping[str, PeftField] = MappingProxyType({})
    """What is made of each field of PEFT's configuration."""
    only_in_peft: bool = False
    """Whether an expert of this kind is always written as a PEFT adapter."""
    in_bank: bool = False
    """Whether a bank can hold the kind."""
    size_word: str = "size"
    """What `size_of` counts, in messages: `rank`, `bottleneck width`, `virtual tokens`."""

    @abstractmethod
    def size_of(self, tensors: Tensors) -> int:
        """Rank, bottleneck width or number of virtual tokens of an expert's tensors at a site."""

    def check_tensors(self, tensors: Tensors, *, where: str) -> None:
        """Refuse a site whose tensors cannot be the kind's.

        Raises:
            ExpertError: a tensor is missing, unknown or of a wrong shape; begins with `where`.
        """
        needed = self.axes.keys() - self.optional
        if not self.axes:
            return
        if not needed <= tensors.keys() <= self.axes.keys():
            raise ExpertError(
                f"{where}: has {', '.join(sorted(map(str, tensors))) or 'no tensors'}, an expert "
                f"of kind {self.name!r} has {', '.join(sorted(needed))}; train it again"
            )
        lengths: dict[str, int] = {}
        for name, array in tensors.items():
            axes = self.axes[name]
            fits = array.ndim == len(axes) and all(
                length and lengths.setdefault(axis, length) == length
                for axis, length in zip(axes, array.shape, strict=True)
            )
            if not fits:
                shapes = ", ".join(f"{one} {tensors[one].shape}" for one in sorted(tensors))
                expected = ", ".join(
                    f"{one} ({', '.join(self.axes[one])})" for one in sorted(tensors)
                )
                raise ExpertError(
                    f"{where}: has {shapes}, expected {expected} of equal lengths; train it again"
                )

    def scaling(self, alpha: float, size: int, *, rank_stabilized: bool = False) -> float:
        """The factor s of an expert's change; 1 for kinds that have none."""
        return 1.0

    def named(self, sites: Sites) -> dict[str, Array]:
        """Every tensor under the name that enters the expert's digest: `<site>.<tensor>`."""
        return {
            f"{site}.{name}": array
            for site, tensors in sites.items()
            for name, array in tensors.items()
        }

    def written_for_peft(self, sites: Sites, *, peft_can: bool | None) -> bool:
        """Whether an expert is written as a PEFT adapter.

        Args:
            peft_can: whether `peft` can run it on its backbone; None where nobody knows.
        """
        return self.only_in_peft

    def peft_config(self, sites: Sites, *, scaling: float, rank_stabilized: bool) -> dict[str, Any]:
        """The kind's own part of `adapter_config.json`."""
        raise self._refusal("PEFT has no format for it")

    def peft_tensors(self, sites: Sites) -> dict[str, Array]:
        """The content of `adapter_model.safetensors`."""
        raise self._refusal("PEFT has no format for it")

    def read_peft(
        self, folder: Path, config: Mapping[str, Any], tensors: Mapping[str, npt.NDArray[Any]]
    ) -> PeftAdapter:
        """The adapter of a config and its tensors.

        Args:
            folder: where they were read, for messages.

        Raises:
            ExpertError: a value or tensor is missing, damaged or of another shape.
        """
        raise self._refusal("PEFT has no format for it")

    def graph_inputs(self, tensors: Tensors, *, scaling: float) -> dict[str, Array]:
        """A site's tensors as optional inputs of a graph of one expert, by the name after the site.

        Raises:
            ExpertError: the kind cannot be given so.
        """
        raise self._refusal(
            "an .onnx_adapter holds the factors of a LoRA; export it with `pidep export`"
        )

    def truncate(self, sites: Sites, *, scaling: float, rank: int, max_error: float) -> Truncated:
        """The nearest expert of a smaller rank.

        Raises:
            ExpertError: the kind has no rank, the rank is below 1, or the relative error of a site
                is above `max_error`.
        """
        raise ExpertError(f"is of kind {self.name!r}; only a LoRA has a rank to reduce, by SVD")

    def bank_factors(self, tensors: Tensors, *, scaling: float) -> dict[str, Array]:
        """A site's tensors as a bank holds them: factor to `[rows, width]` fp32.

        Zeros in place of an expert must change nothing: they are what the bare backbone has, and
        what fills up the rows of a small expert.
        """
        raise self._refusal("no bank holds it; export it with `form=merged`")

    def bank_groups(self, shapes: Mapping[str, Mapping[str, tuple[int, ...]]]) -> list[BankGroup]:
        """The graph inputs that hold experts of this kind in a bank.

        Many small gathers slow a small batch, so all sites of one width share one input.

        Args:
            shapes: site to the shapes of its tensors, of the largest expert that the bank has room
                for; in the backbone's order.
        """
        sites: dict[tuple[str, int], list[str]] = {}
        sizes: dict[tuple[str, int], int] = {}
        for site, tensors in shapes.items():
            empty = {name: np.zeros(shape, np.float32) for name, shape in tensors.items()}
            for factor, array in self.bank_factors(empty, scaling=1.0).items():
                size, width = array.shape
                sites.setdefault((factor, width), []).append(site)
                sizes[factor, width] = max(size, sizes.get((factor, width), 0))
        return [
            BankGroup(
                input=f"{self.name}_{factor.lower()}_{width}",
                factor=factor,
                width=width,
                sites=tuple(sites[factor, width]),
                size=sizes[factor, width],
                kind=self.name,
            )
            # Sorted, so that the graph's inputs have the same order at every export.
            for factor, width in sorted(sites)
        ]

    def fill_bank_row(self, row: Array, group: BankGroup, sites: Sites, *, scaling: float) -> None:
        """Write an expert into one zeroed row `[S, size, width]` of a group's input."""
        for column, site in enumerate(group.sites):
            if site in sites:
                factor = self.bank_factors(sites[site], scaling=scaling)[group.factor]
                row[column, : len(factor)] = factor

    def positions_before(self, sites: Sites, groups: Sequence[BankGroup]) -> int:
        """Positions that an expert in these groups takes before the text."""
        return 0

    def why_unmixable(self, parts: Sequence[Sites]) -> str:
        """Why experts cannot be the parts of one mixture; empty where they can."""
        return ""

    def check_bank(self, sites: Sites, groups: Sequence[BankGroup], *, where: str) -> None:
        """Refuse an expert that the groups have no room for.

        Raises:
            ExpertError: the bank does not hold the kind, lacks a site, or has too little room
                there; begins with `where`.
        """
        rooms = {
            (group.factor, site): (group.size, group.width)
            for group in groups
            if group.kind == self.name
            for site in group.sites
        }
        if not rooms:
            held = " and ".join(sorted({group.kind for group in groups})) or "no experts"
            raise ExpertError(
                f"{where}: is of kind {self.name!r}, the bank holds {held}; "
                "export the bank with it, or it alone with `form=merged`"
            )
        for site, tensors in sites.items():
            for factor, array in self.bank_factors(tensors, scaling=1.0).items():
                if (factor, site) not in rooms:
                    raise ExpertError(
                        f"{where}: site {site!r} is not in the bank; "
                        "export the bank with an expert that uses it"
                    )
                size, width = rooms[factor, site]
                if len(array) > size or array.shape[1] != width:
                    raise ExpertError(
                        f"{where}: {self.name}_{factor} at {site} has {self.size_word} "
                        f"{len(array)} and width {array.shape[1]}, the bank needs "
                        f"{self.size_word} <= {size} and width {width}; "
                        "export the bank with this expert or retrain the expert"
                    )

    def _refusal(self, why: str) -> ExpertError:
        return ExpertError(f"expert kind {self.name!r}: {why}")
