"""LoRA (Hu et al., 2022) on dense layers: y = W x + s·B A x.

A mixture sums the *products* Σₖ αₖ sₖ BₖAₖ, never the factors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pidep.adapters import row_ops
from pidep.adapters.bank_rows import running_bank
from pidep.adapters.dense import dense_layers, linear_at, widths
from pidep.adapters.site import (
    AdapterKind,
    Array,
    BankSite,
    LayerSite,
    Tensors,
    drawn_first,
    everywhere,
    to_array,
)
from pidep.experts.kinds.lora import KIND as LORA
from pidep.kernels.lora_bank import lora_bank
from pidep.kernels.lora_fold import lora_fold
from pidep.kernels.lora_mixture import lora_mixture

__all__ = ["KIND", "LoraBankSite", "LoraSite"]


class LoraSite(LayerSite):
    """A dense layer plus K LoRAs side by side: two matrix products for any K. Ranks may differ.

    The first `num_learned` experts are parameters. The others are buffers without gradient.
    """

    owner: Tensor
    scaling: Tensor
    frozen_a: Tensor
    frozen_b: Tensor

    def __init__(
        self, parts: Sequence[Tensors], scalings: Sequence[float], *, num_learned: int
    ) -> None:
        super().__init__(len(parts))
        a = [torch.from_numpy(part["lora_A"]) for part in parts]  # [rank_k, in] each
        b = [torch.from_numpy(part["lora_B"]) for part in parts]  # [out, rank_k] each
        self.a, self.b = (
            nn.Parameter(_joined(a[:num_learned], a[0], 0)),
            nn.Parameter(_joined(b[:num_learned], b[0], 1)),
        )
        self.register_buffer("frozen_a", _joined(a[num_learned:], a[0], 0))
        self.register_buffer("frozen_b", _joined(b[num_learned:], b[0], 1))
        ranks = torch.tensor([len(part["lora_A"]) for part in parts])
        self.register_buffer(
            "owner", torch.repeat_interleave(torch.arange(len(parts)), ranks), persistent=False
        )
        self.register_buffer("scaling", torch.tensor(scalings), persistent=False)
        self.scalings = tuple(scalings)

    @classmethod
    def of(
        cls, parts: Sequence[Tensors], scalings: Sequence[float], *, num_learned: int
    ) -> LoraSite:
        """A site that keeps the factors itself: products are mixed, not parameters."""
        return cls(parts, scalings, num_learned=num_learned)

    def factors(self) -> tuple[Tensor, Tensor]:
        """A `[R, in]` and B `[out, R]` of all experts; R = Σ rank_k."""
        if not len(self.frozen_a):
            return self.a, self.b
        # Stacked along the rank: Σ BₖAₖ is then one product, whatever K is.
        return torch.cat([self.a, self.frozen_a]), torch.cat([self.b, self.frozen_b], 1)

    def parameters_of_experts(self) -> list[nn.Parameter]:
        """A and B of the learned experts."""
        return [self.a, self.b]

    def rank_weights(self) -> Tensor:
        """αₖ sₖ for each stacked rank, `[R]`."""
        return (self.alpha() * self.scaling)[self.owner]

    def act(self, x: Tensor, y: Tensor) -> Tensor:
        """y + Σₖ αₖ sₖ BₖAₖ x."""
        if self.rows is None:
            return lora_mixture(x, *self.factors(), self.rank_weights(), y)
        return y + lora_bank(
            x, self.rows["lora_A"], self.rows["lora_B"].transpose(1, 2) * self.scalings[0]
        )

    def part(self, index: int) -> dict[str, Array]:
        """Expert `index` as it is, without its scaling."""
        mine = self.owner == index
        a, b = self.factors()
        return {"lora_A": to_array(a[mine]), "lora_B": to_array(b[:, mine])}

    def folded(self) -> dict[str, Array]:
        """One LoRA of rank Σ rank_k whose ΔW is exactly Σ αₖ sₖ BₖAₖ. B holds α and s."""
        with torch.no_grad():
            a, b = self.factors()
            # α and s go into B alone. In both factors they would act twice.
            return {"lora_A": to_array(a), "lora_B": to_array(b * self.rank_weights())}


def _joined(parts: Sequence[Tensor], like: Tensor, axis: int) -> Tensor:
    """The parts joined along an axis; an empty tensor where there are none."""
    return torch.cat(list(parts), axis) if parts else like.narrow(axis, 0, 0).clone()


class LoraBankSite(BankSite):
    """A dense layer plus the LoRAs of each row's own expert: y + Σₖ wₖ (x Aₖᵀ) Bₖ."""

    kind = LORA.name

    def forward(self, x: Tensor, *more: Any, **options: Any) -> Tensor:
        """The layer, the LoRAs added before its bias."""
        base = self.base
        # By class: a layer of another class, or one that is wrapped, may do more than a product.
        if type(base) is not nn.Linear or x.dim() < 3:
            return super().forward(x, *more, **options)
        # Bias last, as in the bare graph: ONNX Runtime fuses it with what follows, such as an
        # activation, or a residual sum and its LayerNorm.
        y = nn.functional.linear(x, base.weight) + self._added(x)
        return y if base.bias is None else y + base.bias

    def act(self, x: Tensor, y: Tensor) -> Tensor:
        """y + Σₖ wₖ (x Aₖᵀ) Bₖ."""
        return y + self._added(x)

    def _added(self, x: Tensor) -> Tensor:
        # The weights act on x Aᵀ, the smallest of the tensors.
        hidden = running_bank().hidden(self.kind, "A", self.name, x)
        return row_ops.matmul(hidden, self.own("B"))


@contextmanager
def _fold(model: nn.Module, sites: Mapping[str, Tensors], scaling: float) -> Iterator[None]:
    """Add s·BA to the backbone's weights, summed in fp32 and rounded once.

    The old weights come back bit for bit.
    """
    linears = {site: linear_at(model, site) for site in sites}
    # A copy, not a subtraction afterwards: in floating point, w + d - d is not w.
    kept = {site: linear.weight.detach().clone() for site, linear in linears.items()}
    try:
        with torch.no_grad():
            for site, lora in sites.items():
                weight = linears[site].weight
                a, b = (
                    torch.from_numpy(lora[name]).to(weight.device) for name in ("lora_A", "lora_B")
                )
                # In place: a second copy of every folded weight would double the backbone's memory.
                lora_fold(weight, a, b, a.new_full((len(a),), scaling), out=weight)
        yield
    finally:
        with torch.no_grad():
            for site, weight in kept.items():
                linears[site].weight.copy_(weight)


def _shapes(model: nn.Module, site: str, rank: int) -> dict[str, tuple[int, ...]]:
    inputs, outputs = widths(model.get_submodule(site))
    return {"lora_A": (rank, inputs), "lora_B": (outputs, rank)}


KIND = AdapterKind(
    LORA,
    LoraSite,
    needs="Linear",
    changes="adds s·B A x to a Linear's output",
    candidates=dense_layers,
    shapes=_shapes,
    start=drawn_first("lora_A"),
    learning_rate=1e-3,
    keeps_tensors=True,
    in_peft=everywhere,
    place="Linear",
    fold=_fold,
    bank_site=LoraBankSite,
    bank_shared=frozenset({"A"}),
)
