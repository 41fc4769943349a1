"""LoRA (Hu et al., 2022) on dense layers: y = W x + s·B A x, and the mixture of the *products* Σₖ αₖ sₖ BₖAₖ."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from pidep.adapters.dense import dense_layers, widths
from pidep.adapters.site import Array, Kind, LayerSite, Tensors, WrappedSite, everywhere, to_array
from pidep.kernels.lora_bank import lora_bank
from pidep.kernels.lora_mixture import lora_mixture

__all__ = ["KIND", "BankSite", "LoraSite", "bank_rows", "linears", "scaling"]


def scaling(lora_alpha: float, rank: int, *, rank_stabilized: bool = False) -> float:
    """s in ΔW = s·BA: alpha / r, or alpha / √r (rsLoRA; Kalajdzievski, 2023), which keeps the update's size as the rank grows."""
    return lora_alpha / (math.sqrt(rank) if rank_stabilized else rank)


class LoraSite(LayerSite):
    """A dense layer plus K LoRAs, their ranks side by side: two matrix products whatever K is. Ranks may differ.

    The first `num_learned` experts are parameters; the others are buffers, which are read and given no gradient.
    """

    owner: Tensor
    scaling: Tensor
    frozen_a: Tensor
    frozen_b: Tensor

    def __init__(self, parts: Sequence[Tensors], scalings: Sequence[float], *, num_learned: int) -> None:
        super().__init__(len(parts))
        a = [torch.from_numpy(part["lora_A"]) for part in parts]  # [rank_k, in] each
        b = [torch.from_numpy(part["lora_B"]) for part in parts]  # [out, rank_k] each
        self.a, self.b = nn.Parameter(_joined(a[:num_learned], a[0], 0)), nn.Parameter(_joined(b[:num_learned], b[0], 1))
        self.register_buffer("frozen_a", _joined(a[num_learned:], a[0], 0))
        self.register_buffer("frozen_b", _joined(b[num_learned:], b[0], 1))
        ranks = torch.tensor([len(part["lora_A"]) for part in parts])
        self.register_buffer("owner", torch.repeat_interleave(torch.arange(len(parts)), ranks), persistent=False)
        self.register_buffer("scaling", torch.tensor(scalings), persistent=False)
        self.scalings = tuple(scalings)

    @classmethod
    def of(cls, parts: Sequence[Tensors], scalings: Sequence[float], *, num_learned: int) -> LoraSite:
        """Keeps the factors itself: products are mixed, not parameters."""
        return cls(parts, scalings, num_learned=num_learned)

    def factors(self) -> tuple[Tensor, Tensor]:
        """`[R, in]` and `[out, R]` of all experts, R = Σ rank_k."""
        if not len(self.frozen_a):
            return self.a, self.b
        return torch.cat([self.a, self.frozen_a]), torch.cat([self.b, self.frozen_b], 1)

    def parameters_of_experts(self) -> list[nn.Parameter]:
        """A and B of the experts that are learned."""
        return [self.a, self.b]

    def rank_weights(self) -> Tensor:
        """`[R]` αₖ sₖ for each stacked rank."""
        return (self.alpha() * self.scaling)[self.owner]

    def act(self, x: Tensor, y: Tensor) -> Tensor:
        """y + Σₖ αₖ sₖ BₖAₖ x."""
        if self.rows is None:
            return lora_mixture(x, *self.factors(), self.rank_weights(), y)
        return y + lora_bank(x, self.rows["lora_A"], self.rows["lora_B"].transpose(1, 2) * self.scalings[0])

    def part(self, index: int) -> dict[str, Array]:
        """Expert `index` as it is, its own scaling left out."""
        mine = self.owner == index
        a, b = self.factors()
        return {"lora_A": to_array(a[mine]), "lora_B": to_array(b[:, mine])}

    def folded(self) -> dict[str, Array]:
        """One LoRA of rank Σ rank_k whose ΔW is Σ αₖ sₖ BₖAₖ exactly; α and s are in B."""
        with torch.no_grad():
            a, b = self.factors()
            return {"lora_A": to_array(a), "lora_B": to_array(b * self.rank_weights())}


def _joined(parts: Sequence[Tensor], like: Tensor, axis: int) -> Tensor:
    """The parts along an axis, of length 0 where there are none."""
    return torch.cat(list(parts), axis) if parts else like.narrow(axis, 0, 0).clone()


_CURRENT_ROWS: list[Mapping[str, tuple[Tensor, Tensor]]] = []


@contextmanager
def bank_rows(rows: Mapping[str, tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Give each `BankSite` its per-row factors for one forward pass.

    A module-level stack because `torch.export` copies modules and would lose what hangs on them.
    """
    _CURRENT_ROWS.append(rows)
    try:
        yield
    finally:
        _CURRENT_ROWS.pop()


class BankSite(WrappedSite):
    """A dense layer plus the LoRA of each row's own expert, taken from `bank_rows`."""

    def __init__(self, name: str) -> None:
        super().__init__(1)
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        """`[B, T, in]` to `[B, T, out]`."""
        assert self.base is not None
        return cast(Tensor, self.base(x) + lora_bank(x, *_CURRENT_ROWS[-1][self.name]))


def linears(model: nn.Module) -> list[str]:
    """Every Linear or Conv1D."""
    return dense_layers(model)


def _shapes(model: nn.Module, site: str, rank: int) -> dict[str, tuple[int, ...]]:
    inputs, outputs = widths(model.get_submodule(site))
    return {"lora_A": (rank, inputs), "lora_B": (outputs, rank)}


def _start(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """A Kaiming-uniform as in PEFT, B zero."""
    if name == "lora_B":
        return torch.zeros(shape)
    bound = shape[1] ** -0.5
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)


KIND = Kind(
    "lora",
    LoraSite,
    needs="Linear",
    changes="adds s·B A x to a Linear's output",
    candidates=linears,
    shapes=_shapes,
    start=_start,
    size_of=lambda tensors: len(tensors["lora_A"]),
    learning_rate=1e-3,
    keeps_tensors=True,
    in_peft=everywhere,
)
