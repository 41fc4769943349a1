"""Interpolation: own expert and helpers become one mixture, learned on the target's rows.

The fixed policies train α as the paper does and, with α, the experts not at all (`frozen`), a
little (`anchored`) or fully (`free`). `uniform` trains nothing. `auto` decides by held-out rows;
see `pidep.interpolation.auto`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pidep.adapters.mixture import Mixture
from pidep.experts.folder import Expert
from pidep.interpolation.auto import Interpolated, auto
from pidep.interpolation.candidates import NEGLIGIBLE, CandidateTrainer, one_rate_for_all
from pidep.interpolation.guard import Decision
from pidep.tasks.data import Split
from pidep.training.loop import OnStep, Schedule, TrainReport, fit
from pidep.training.scorer import Scorer

__all__ = ["interpolate", "train_jointly"]


def interpolate(
    trainer: CandidateTrainer,
    own: Expert,
    train: Split,
    validation: Split | None,
    *,
    similarities: Sequence[float] | None = None,
) -> Interpolated:
    """The mixture of own expert and helpers, learned on the target's rows (π-Tuning, 3.3).

    Args:
        trainer: scorer, helpers and settings; under `auto` it trains an own expert for every fold.
        similarities: predicted similarity of each helper, for `alpha_start="similarity"`.

    Raises:
        ExpertError: the experts are of different kinds or sites.
        Diverged: a loss became NaN or Inf.
    """
    settings, helpers = trainer.settings, trainer.helpers
    # Kept apart from the trained mixture, because the run reports its metric, too.
    uniform = Mixture.of([own, *helpers])
    names = (own.name, *(helper.name for helper in helpers))
    policy = settings.policy
    if policy == "auto":
        return auto(trainer, own, train, validation, uniform)
    mixture = Mixture.of([own, *helpers], per=settings.alpha_per)
    if settings.alpha_start == "similarity" and similarities is not None:
        _start_from_similarities(mixture, similarities)
    if policy == "uniform":
        return Interpolated(mixture, uniform, names, Decision(policy, policy, "asked for"), {})
    expert_rates = {
        "frozen": 0.0,
        "anchored": settings.expert_learning_rate,
        "free": settings.own_learning_rate,
    }
    report = fit(
        trainer.scorer,
        mixture,
        [
            (mixture.alpha_parameters(), settings.alpha_learning_rate),
            (mixture.expert_parameters(), expert_rates[policy]),
        ],
        train,
        validation,
        settings.schedule,
        checkpoint=trainer.checkpoint,
        resume=trainer.resume,
        on_step=trainer.on_step,
    )
    decision = Decision(policy, "mixture", "asked for")
    return Interpolated(mixture, uniform, names, decision, {"interpolation": report})


def train_jointly(
    scorer: Scorer,
    mixture: Mixture,
    train: Split,
    validation: Split | None,
    schedule: Schedule,
    *,
    learning_rate: float,
    on_step: OnStep | None = None,
) -> TrainReport:
    """Train α and all experts at one peak learning rate, as the authors do."""
    groups = one_rate_for_all(mixture, learning_rate)
    return fit(scorer, mixture, groups, train, validation, schedule, on_step=on_step)


def _start_from_similarities(mixture: Mixture, similarities: Sequence[float]) -> None:
    """Set α proportional to the similarities; the target's similarity to itself is 1."""
    # As logits: the softmax of log s is s over the sum.
    start = torch.tensor([1.0, *similarities]).clamp(min=NEGLIGIBLE).log()
    with torch.no_grad():
        for parameter in mixture.alpha_parameters():
            parameter.copy_(start)
