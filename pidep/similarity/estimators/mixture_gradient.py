"""First-order estimate: minus the inner product of the target's gradient with each helper's ΔW.

All helpers are attached as one mixture. One backward pass to α gives the inner product of every
helper at every site: for LoRA, ∂L/∂αₖ = ⟨∂L/∂W, ΔWₖ⟩. α is a softmax, so what is found is the
inner product minus its mean over the helpers, which ranks them alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from pidep.adapters.mixture import Mixture, attached
from pidep.errors import UsageError
from pidep.similarity.estimators.estimator import Cost, Estimator, Helper, Target, Vector
from pidep.similarity.row_gradients import row_batches

__all__ = ["mixture_gradient", "mixture_gradients_by_site"]

_SMALL = 1e-3
"""Share of ΔW at which the mixture is the bare backbone but for rounding."""


def mixture_gradients_by_site(
    target: Target, helpers: Mapping[str, Helper], *, at_backbone: bool, batch_size: int = 16
) -> dict[str, Vector]:
    """Site to `[K]`, each helper's share of the estimate; larger is better.

    Args:
        at_backbone: differentiate at the bare backbone instead of at the helpers' uniform mixture.

    Raises:
        UsageError: `at_backbone` with experts that have no scaling.
    """
    experts = [helper.expert for helper in helpers.values()]
    share = _SMALL if at_backbone else 1.0
    if at_backbone:
        if any(expert.kind != "lora" for expert in experts):
            raise UsageError(
                "first order at the backbone: needs LoRAs, whose scaling can go to 0; use the "
                "estimate at the mixture"
            )
        experts = [replace(expert, scaling=_SMALL * expert.scaling) for expert in experts]
    scorer, rows = target.scorer, target.rows
    mixture = Mixture.of(experts)
    labels = torch.tensor(rows.labels)
    logits_of_alpha = {name: site.alpha_logits for name, site in mixture.by_name()}
    totals = {name: torch.zeros(len(experts), dtype=torch.float64) for name in logits_of_alpha}
    scorer.answers.learn(rows.rows)
    with attached(scorer.backbone.model, mixture):
        for numbers in row_batches(rows.rows, batch_size=batch_size):
            logits = scorer.logits([rows.rows[number] for number in numbers])
            loss = cross_entropy(logits, labels[numbers].to(logits.device), reduction="sum")
            gradients = torch.autograd.grad(loss, list(logits_of_alpha.values()))
            for name, gradient in zip(logits_of_alpha, gradients, strict=True):
                totals[name] += gradient.double().cpu()
    # ∂L/∂logitₖ = αₖ (∂L/∂αₖ − Σ α ∂L/∂α) with αₖ = 1/K; α multiplies `share` · ΔW.
    factor = len(experts) / (share * len(rows.rows))
    return {name: -(factor * total).numpy() for name, total in totals.items()}


def mixture_gradient(*, at_backbone: bool) -> Estimator:
    """The sum over the sites."""

    def estimate(target: Target, helpers: Mapping[str, Helper]) -> dict[str, float]:
        if len(helpers) < 2:
            return dict.fromkeys(helpers, 0.0)
        by_site = mixture_gradients_by_site(target, helpers, at_backbone=at_backbone)
        total = np.sum(list(by_site.values()), axis=0).tolist()
        return dict(zip(helpers, total, strict=True))

    where = "backbone" if at_backbone else "mixture"
    return Estimator(f"first order at the {where}", Cost(task_forward=1, task_backward=1), estimate)
