"""A base point: parameters at which the rows of every task are compared (Task2Vec's probe network).

A task embedding is usually the Fisher at the task's own expert. Embeddings of two tasks then lie at
two points, and an expert that knows its few shots by heart has no gradient left. At one point for
all tasks neither happens, and gradients keep their sign.

Source: Task2Vec (Achille et al., 2019), section 3. The point must not be that of an untrained LoRA,
whose B is zero: there A has no gradient.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from pidep.adapters.mixture import fresh
from pidep.backbones.backbone import Backbone
from pidep.errors import ExpertError, UsageError
from pidep.experts.folder import Expert
from pidep.experts.kind import Tensors
from pidep.inputs.row import Input
from pidep.similarity.row_gradients import row_batches, row_gradients

__all__ = ["BasePoint", "Gradient", "PointFacts", "mean_point", "point_facts", "random_point"]

Gradient = Mapping[str, npt.NDArray[np.float32]]
"""`<site>.<tensor>` to the mean gradient of the loss."""

NOISE = 0.02
"""Standard deviation of a random point's offsets: about the size of a trained LoRA's B."""
NOISE_SEED = 20190210


@dataclass(frozen=True)
class BasePoint:
    """The tensors of an expert that belongs to no task."""

    name: str
    kind: str
    scaling: float
    sites: Mapping[str, Tensors]

    def under(self, expert: Expert) -> Expert:
        """The point with the labels of an expert's task."""
        return replace(
            expert, sites=dict(self.sites), scaling=self.scaling, kind=self.kind, label_bias=()
        )

    def tensors(self) -> dict[str, npt.NDArray[np.float32]]:
        """`<site>.<tensor>` to values."""
        return {
            f"{site}.{name}": array
            for site, tensors in self.sites.items()
            for name, array in tensors.items()
        }


def random_point(
    model: nn.Module, sites: Sequence[str], *, kind: str = "lora", rank: int, scaling: float = 1.0
) -> BasePoint:
    """Untrained tensors plus noise; the same on every machine."""
    rng = np.random.default_rng(NOISE_SEED)
    start = fresh(model, sorted(sites), kind=kind, rank=rank)
    noisy = {
        site: {
            name: (array + NOISE * rng.standard_normal(array.shape)).astype(np.float32)
            for name, array in tensors.items()
        }
        for site, tensors in start.items()
    }
    return BasePoint("random", kind, scaling, noisy)


def mean_point(experts: Sequence[Expert]) -> BasePoint:
    """The mean of a pool's experts, tensor by tensor.

    Experts start from the same tensors, so their factors can be averaged for this purpose.

    Raises:
        ExpertError: no experts, or experts of different kinds, sites, shapes or scalings.
    """
    layouts = {(one.kind, one.scaling, _layout(one)) for one in experts}
    if len(layouts) != 1:
        raise ExpertError(
            f"mean of {len(experts)} experts: expected one kind, scaling, rank and sites, "
            f"found {len(layouts)}; use one pool for each"
        )
    first = experts[0]

    def mean(site: str, name: str) -> npt.NDArray[np.float32]:
        values = [one.sites[site][name] for one in experts]
        return np.asarray(np.mean(values, axis=0, dtype=np.float64), np.float32)

    sites = {site: {name: mean(site, name) for name in own} for site, own in first.sites.items()}
    return BasePoint("mean", first.kind, first.scaling, sites)


def _layout(expert: Expert) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple(
        (f"{site}.{name}", array.shape)
        for site, tensors in sorted(expert.sites.items())
        for name, array in sorted(tensors.items())
    )


@dataclass(frozen=True)
class PointFacts:
    """What the labelled rows of a task say at a base point."""

    point: BasePoint
    fisher: Mapping[str, npt.NDArray[np.float32]]
    """Mean squared gradient of each row's loss."""
    gradient: Gradient
    """Mean gradient, with its sign."""
    num_rows: int


def point_facts(
    backbone: Backbone,
    point: BasePoint,
    expert: Expert,
    rows: Sequence[Input],
    labels: Sequence[int],
    *,
    batch_size: int = 16,
) -> PointFacts:
    """One forward and one backward pass over the rows.

    Args:
        expert: any expert of the task; only its labels and its `max_length` are read.

    Raises:
        UsageError: no rows, or another number of labels.
        ExpertError: the point does not fit the backbone.
    """
    if not rows or len(rows) != len(labels):
        raise UsageError(
            f"base point {point.name!r}: expected rows with a label each, found {len(rows)} rows "
            f"and {len(labels)} labels"
        )
    given = torch.tensor(labels)
    sums: dict[str, Tensor] = {}
    squares: dict[str, Tensor] = {}
    for gradients in row_gradients(
        backbone,
        point.under(expert),
        rows,
        lambda numbers, logits: given[numbers].to(logits.device),
        batches=row_batches(rows, batch_size=batch_size),
    ):
        for name, gradient in gradients.items():
            # fp64: thousands of small numbers go into one sum.
            own, squared = gradient.sum(0).double(), gradient.square().sum(0).double()
            sums[name] = sums[name] + own if name in sums else own
            squares[name] = squares[name] + squared if name in squares else squared
    fisher, mean = (
        {name: (total / len(rows)).float().cpu().numpy() for name, total in totals.items()}
        for totals in (squares, sums)
    )
    return PointFacts(point, fisher, mean, len(rows))
