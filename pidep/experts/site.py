"""A place in the backbone where K experts of one kind act: how they attach, mix and fold. Kinds build on it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from pidep.errors import ExpertError

__all__ = ["Array", "ExpertSite", "Kind", "Tensors", "WrappedSite"]

Array = npt.NDArray[np.float32]
Tensors = Mapping[str, Array]
"""One expert's tensors at one site, by name."""


class ExpertSite(nn.Module, ABC):
    """K experts at one site. Parameters are interpolated: φ̄ = Σₖ αₖ φₖ, α = softmax of the site's logits (π-Tuning, section 3.3)."""

    def __init__(self, parts: Sequence[Tensors], scalings: Sequence[float]) -> None:
        super().__init__()
        if len({tuple((name, part[name].shape) for name in sorted(part)) for part in parts}) != 1:
            raise ExpertError("mixture: the experts have tensors of different shapes; train them with the same --rank")
        self.experts = nn.ParameterDict(
            {name: nn.Parameter(torch.stack([torch.from_numpy(part[name] * np.float32(1)) for part in parts])) for name in sorted(parts[0])}
        )
        self.base: nn.Module | None = None
        self.scalings = tuple(scalings)
        self.alpha_logits = nn.Parameter(torch.zeros(len(parts)))
        self.rows: Mapping[str, Tensor] | None = None
        """One expert a row of the batch, `[B, …]` a tensor, in the place of the mixture: how per-sample gradients are had."""

    def alpha(self) -> Tensor:
        """`[K]` mixture weights, summing to 1."""
        return torch.softmax(self.alpha_logits, 0)

    def tensors(self) -> Mapping[str, Tensor]:
        """What acts now: the rows where they are set, else the mixture. Every use must broadcast over a leading batch axis."""
        if self.rows is not None:
            return self.rows
        if len(self.alpha_logits) == 1:
            return {name: stacked[0] for name, stacked in self.experts.items()}
        alpha = self.alpha()
        return {name: torch.tensordot(alpha, stacked, 1) for name, stacked in self.experts.items()}

    def part(self, index: int) -> dict[str, Array]:
        """Expert `index` as it is."""
        return {name: stacked[index].detach().numpy().copy() for name, stacked in self.experts.items()}

    def folded(self) -> dict[str, Array]:
        """The mixture as one expert of scaling 1."""
        with torch.no_grad():
            alpha = self.alpha()
            return {name: torch.tensordot(alpha, stacked, 1).numpy().copy() for name, stacked in self.experts.items()}

    @abstractmethod
    def attach(self, model: nn.Module, name: str) -> Callable[[], None]:
        """Act on `model` at `name`; the function returned undoes it bit for bit."""


class WrappedSite(ExpertSite):
    """Stands in the place of the module it wraps."""

    def attach(self, model: nn.Module, name: str) -> Callable[[], None]:
        """Take the module's place; it is put back afterwards, the very same."""
        self.base = model.get_submodule(name)
        model.set_submodule(name, self)

        def detach() -> None:
            assert self.base is not None
            model.set_submodule(name, self.base)
            self.base = None

        return detach


@dataclass(frozen=True)
class Kind:
    """One kind of expert; a new kind is one file in `pidep/experts/kinds` that ends with one of these."""

    name: str
    site: type[ExpertSite]
    candidates: Callable[[nn.Module], list[str]]
    """Every place of a backbone it could act on, in the order of its modules."""
    shapes: Callable[[nn.Module, str, int], dict[str, tuple[int, ...]]]
    """Tensor shapes at a site of the backbone, for a size."""
    start: Callable[[str, tuple[int, ...], torch.Generator], Tensor]
    """An untrained tensor, by name and shape; an untrained expert changes nothing, or next to nothing."""
    size_of: Callable[[Tensors], int]
    """Rank, bottleneck width or number of virtual tokens of an expert's tensors."""
    learning_rate: float
    """A peak learning rate that works on small encoders."""
    default_patterns: tuple[str, ...] = ("*",)
