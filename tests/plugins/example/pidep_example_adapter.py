"""How the example's kind acts on a torch module. Imported only where torch is installed."""

from __future__ import annotations

import torch
from pidep_example import IA3
from torch import Tensor, nn

from pidep.adapters.dense import dense_layers, widths
from pidep.adapters.site import AdapterKind, LayerSite


class Ia3Site(LayerSite):
    """y · (1 + s)."""

    def act(self, x: Tensor, y: Tensor) -> Tensor:
        return y * (1 + self.tensors()["scale"].unsqueeze(-2))


def _shapes(model: nn.Module, site: str, _: int) -> dict[str, tuple[int, ...]]:
    return {"scale": (widths(model.get_submodule(site))[1],)}


def _start(_: str, shape: tuple[int, ...], __: torch.Generator) -> Tensor:
    return torch.zeros(shape)


IA3_ADAPTER = AdapterKind(
    IA3,
    Ia3Site,
    needs="Linear",
    changes="scales a Linear's output",
    candidates=dense_layers,
    shapes=_shapes,
    start=_start,
    learning_rate=1e-2,
)
