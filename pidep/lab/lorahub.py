"""LoraHub (Huang et al., 2023): weights of a merge, found without gradients. LoRA only."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from pidep.adapters.mixture import Mixture
from pidep.errors import UsageError
from pidep.experts.folder import Expert
from pidep.lab.cell import Cell, Predictor
from pidep.tasks.data import limit
from pidep.training.scorer import predict_logits

__all__ = ["lorahub", "sum_factors"]

# Both as in LoraHub's code.
_BOUND = 1.5
_L1 = 0.05


def lorahub(cell: Cell, *, budget: int, max_rows: int) -> Predictor:
    """The merge of least loss after `budget` trials.

    Loss: mean cross-entropy on at most `max_rows` of the target's rows, plus 0.05 · mean |w|.
    The weights w start at 0 and stay within ±1.5.
    """
    optimizer = _nevergrad(len(cell.experts), budget=budget, seed=cell.seed)
    rows = limit(cell.train, max_rows, seed=cell.seed)
    labels = torch.tensor(rows.labels)

    def loss(weights: Any) -> float:
        logits = predict_logits(cell.scorer, rows.rows, sum_factors(cell.experts, weights))
        penalty = _L1 * float(np.abs(weights).mean())
        return float(nn.functional.cross_entropy(logits, labels)) + penalty

    with warnings.catch_warnings():
        # The optimizer that NGOpt picks warns about a tolerance that NGOpt itself gave it.
        warnings.simplefilter("ignore", UserWarning)
        weights = optimizer.minimize(loss).value
    return cell.predictor(
        sum_factors(cell.experts, weights),
        weights=[float(weight) for weight in weights],
        loss=loss(weights),
        rows=len(rows.rows),
        optimizer=optimizer.name,
    )


def _nevergrad(num_weights: int, *, budget: int, seed: int) -> Any:
    try:
        import nevergrad
    except ImportError as error:
        raise UsageError(
            f"method 'lorahub' needs nevergrad ({error}); pip install 'pidep[tune]'"
        ) from error
    bound = np.full(num_weights, _BOUND)
    weights = nevergrad.p.Array(init=np.zeros(num_weights), lower=-bound, upper=bound)
    # nevergrad has a generator of its own, which torch's and numpy's seeds do not reach.
    weights.random_state.seed(seed)
    return nevergrad.optimizers.NGOpt(parametrization=weights, budget=budget)


def sum_factors(experts: Sequence[Expert], weights: Sequence[float]) -> Mixture:
    """One LoRA of the factors Σ wₖ Aₖ and Σ wₖ Bₖ, under the first expert's scaling.

    LoraHub sums A and B separately, so the product is not the sum of the products.
    """
    first = experts[0]
    merged = {
        site: {
            name: sum(
                (
                    np.float32(weight) * expert.sites[site][name]
                    for weight, expert in zip(weights, experts, strict=True)
                ),
                start=0,
            )
            for name in tensors
        }
        for site, tensors in first.sites.items()
    }
    return Mixture([cast(Any, merged)], [first.scaling])
