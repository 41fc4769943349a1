"""Full fine-tuning: every weight of the backbone is trained, on a copy."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from torch import nn

from pidep.adapters.mixture import Mixture
from pidep.adapters.site import ExpertSite
from pidep.lab.cell import Cell, Predictor, training_details
from pidep.training.loop import fit
from pidep.training.scorer import predict_logits

__all__ = ["full_fine_tuning"]


def full_fine_tuning(cell: Cell, *, learning_rate: float, steps: int | None = None) -> Predictor:
    """A fully trained copy; the label texts keep the embeddings of the bare backbone."""
    # A new encoder has no layer cache: the cached layers are trained here, too.
    encoder = cell.scorer.backbone.around(copy.deepcopy(cell.scorer.backbone.model))
    scorer = replace(cell.scorer, backbone=encoder)
    most = cell.training.steps
    schedule = cell.training.schedule(
        f"{cell.task.name}: full fine-tuning", steps=min(most, steps or most)
    )
    groups = [(list(encoder.model.parameters()), learning_rate)]
    report = fit(
        scorer,
        _AllWeights(encoder.model),
        groups,
        cell.train,
        cell.validation,
        schedule,
        on_step=cell.on_step,
    )
    # Predicting with gradients would keep every activation of the test rows.
    encoder.model.requires_grad_(False)
    details = {"learning_rate": learning_rate, **training_details(report)}
    return Predictor(partial(predict_logits, scorer), details)


class _AllWeights(Mixture):
    """All weights of a backbone in the form of a mixture, so that `fit` can train them."""

    def __init__(self, model: nn.Module) -> None:
        # `Mixture.__init__` would want experts; `fit` needs the parameters and the state alone.
        nn.Module.__init__(self)
        self.kind, self.model, self.arena = "lora", model, None

    def by_name(self) -> Iterator[tuple[str, ExpertSite]]:
        """No sites: nothing is attached anywhere."""
        return iter(())
