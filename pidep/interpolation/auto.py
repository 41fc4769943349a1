"""The policy `auto`: candidates are trained, compared on held-out rows, and averaged or chosen.

It is for the many targets that have few rows, where every fixed policy loses what mixing gained.

1. *In context*: the own expert is learned again from nothing inside the mixture, with the helpers
   frozen. It learns only what the helpers leave undone. Learning rates are scaled by the
   confidence N / (N + 64) in N rows.
2. *Average*: own expert, uniform mixture and in-context mixture are averaged, weighted by
   held-out losses. Held-out rows are the held-back rows where there are any, else the folds of a
   cross-validation inside the shots. The average is one more mixture of the same experts, on
   outputs where the kind can be mixed on outputs.
3. *Joint training*, where rows suffice: α and every expert from the uniform mixture, as in the
   authors' code (`joint`). Of few shots, joint training and the own expert are also trained at
   four times the rate: the usual rate keeps what a related helper knows, and learns too little
   where no helper is related.
4. *Guard*: a candidate that is clearly better than the average on held-out rows replaces it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import nn

from pidep.adapters.mixture import Mixture
from pidep.experts.folder import Expert
from pidep.interpolation.candidates import (
    AT_HIGH_RATE,
    ENOUGH_ROWS,
    HIGH_RATE,
    Candidates,
    CandidateTrainer,
    candidate_names,
    folds_can_tell,
    held_out_logits,
    why_not_tried,
)
from pidep.interpolation.guard import Baseline, Decision, guard
from pidep.interpolation.held_out import (
    HeldOut,
    averaging_weights,
    calibrated_losses,
    calibrated_together,
    confidence_in,
)
from pidep.interpolation.settings import InterpolateSettings
from pidep.tasks.data import Split
from pidep.training.loop import Diverged, TrainReport
from pidep.training.own_expert import TrainOwn
from pidep.training.scorer import Scorer

__all__ = ["Interpolated", "auto", "tuned_own"]

_MARGIN_ON_HELD_BACK_ROWS = 2.0
"""Factor on the lead that joint training needs there: those rows have chosen its best step."""


@dataclass(frozen=True)
class Interpolated:
    """A learned mixture; `mixture` is the one to serve."""

    mixture: Mixture
    uniform: Mixture
    experts: tuple[str, ...]
    """Names of the mixed experts, in the order of α."""
    decision: Decision
    reports: dict[str, TrainReport]
    held_out: HeldOut | None = None
    """What the chosen candidate says about held-out rows; None where nothing was held out."""


def auto(
    trainer: CandidateTrainer,
    own: Expert,
    train: Split,
    validation: Split | None,
    uniform: Mixture,
) -> Interpolated:
    """The best of average, own expert, uniform mixture and joint training by held-out losses."""
    names, confidence = candidate_names(train, validation), confidence_in(len(train.labels))
    not_tried = why_not_tried(train, validation)
    if validation is not None:
        # Held-back rows judge the very mixtures that are returned, so nothing is trained twice.
        found, reports = trainer.train(names, own, train, validation, keep=True)
        decision, weights, scored = _decide(
            trainer,
            [(found, validation)],
            confidence=confidence,
            evidence=confidence * len(validation.labels),
            margin=_MARGIN_ON_HELD_BACK_ROWS,
        )
    else:
        decision, weights, scored, found, reports = _by_folds(
            trainer, names, own, train, confidence=confidence
        )
    helpers = trainer.helpers
    everyone = (own.name, *(helper.name for helper in helpers))
    match decision.chosen:
        case "mixture":
            mixture = found.average(helpers, weights)
            experts = (own.name, f"{own.name} (in context)", *everyone[1:])
        case "own_expert":
            mixture, experts = Mixture.of([own]), (own.name,)
        case "uniform":
            mixture, experts = Mixture.of([own, *helpers], on_outputs=True), everyone
        case "own_expert_high_rate":
            mixture, experts = found.learned[decision.chosen], (f"{own.name} (high rate)",)
        case joint:
            mixture, experts = found.learned[joint], everyone
    decision = replace(decision, left_out={**decision.left_out, **not_tried})
    return Interpolated(mixture, uniform, experts, decision, reports, scored)


def tuned_own(
    scorer: Scorer,
    own: Expert,
    train: Split,
    settings: InterpolateSettings,
    *,
    train_own: TrainOwn,
) -> tuple[Expert, Decision]:
    """The own expert of few shots at the better of two learning rates; no helpers are needed.

    The high rate is taken where folds of the shots say clearly that it is better.
    """
    rows = len(train.labels)
    if not folds_can_tell(rows):
        why = f"with fewer than {ENOUGH_ROWS} rows folds cannot tell"
        return own, Decision("auto", "own_expert", why, rows)
    trainer = CandidateTrainer(scorer, (), settings, train_own)
    held_out = trainer.train_on_folds(("own_expert_high_rate",), train)
    if any(not found.learned for found, _ in held_out):
        return own, Decision("auto", "own_expert", "training diverged at the high rate", rows)
    labels = _labels_of(held_out)
    mixtures: dict[str, Callable[[Candidates], Mixture]] = {
        "own_expert": _own_alone,
        "own_expert_high_rate": partial(_learned, name="own_expert_high_rate"),
    }
    losses = {
        name: calibrated_losses(held_out_logits(scorer, held_out, mixture_of), labels)
        for name, mixture_of in mixtures.items()
    }
    decision = guard(losses, {}, confidence=confidence_in(rows), default="own_expert")
    if decision.chosen == "own_expert":
        return own, decision
    try:
        # The folds have compared learning rates only; the expert itself learns from all shots.
        return train_own(train, HIGH_RATE), decision
    except Diverged:
        why = "training diverged at the high rate, on all rows"
        return own, replace(decision, chosen="own_expert", why=why)


def _by_folds(
    trainer: CandidateTrainer,
    names: Sequence[str],
    own: Expert,
    train: Split,
    *,
    confidence: float,
) -> tuple[Decision, dict[str, float], HeldOut, Candidates, dict[str, TrainReport]]:
    """The decision of folds of the shots; then the chosen candidate alone learns from all shots.

    A candidate at the high rate that diverges on all shots is taken out, and the folds decide
    again.
    """
    # Every shot has trained the own expert, so its loss on the shots says nothing. Folds hold some
    # out.
    held_out = trainer.train_on_folds(names, train)
    diverged = {
        name: "training diverged without one of the folds"
        for name in names
        if any(name not in found.learned for found, _ in held_out)
    }
    # Folds judge experts of fewer rows than those that are averaged, on rows chosen to be
    # balanced. That is far less evidence than held-back rows, hence the square root.
    evidence = confidence * math.sqrt(len(train.labels))
    while True:
        decision, weights, scored = _decide(
            trainer, held_out, confidence=confidence, evidence=evidence
        )
        decision = replace(decision, left_out={**decision.left_out, **diverged})
        # The average needs the in-context mixture; own expert and uniform mixture need no training.
        wanted = "in_context" if decision.chosen == "mixture" else decision.chosen
        chosen = [name for name in names if name == wanted]
        try:
            return decision, weights, scored, *trainer.train(chosen, own, train, keep=True)
        except Diverged:
            if wanted not in AT_HIGH_RATE:
                raise
            diverged[wanted] = "training diverged on all rows"
            held_out = [(found.without(wanted), rows) for found, rows in held_out]


def _decide(
    trainer: CandidateTrainer,
    held_out: Sequence[tuple[Candidates, Split]],
    *,
    confidence: float,
    evidence: float,
    margin: float = 1.0,
) -> tuple[Decision, dict[str, float], HeldOut]:
    """The choice by held-out losses, the weights of the average, and the choice's logits.

    Averaged candidates share one temperature. Joint training and the high rate give logits of
    another scale, so they have a temperature of their own, and so has the best of the others that
    they are compared with.
    """
    scorer, helpers, labels = trainer.scorer, trainer.helpers, _labels_of(held_out)

    def uniform(found: Candidates) -> Mixture:
        return Mixture.of([found.own, *helpers], on_outputs=True)

    averaged = {
        "own_expert": held_out_logits(scorer, held_out, _own_alone),
        "uniform": held_out_logits(scorer, held_out, uniform),
        "in_context": held_out_logits(scorer, held_out, partial(_learned, name="in_context")),
    }
    losses, temperature = calibrated_together(averaged, labels)
    # Squared: of few shots the own expert often has the best held-out loss and usually the worst
    # test accuracy, because shots are drawn evenly from the classes (decision 004).
    prior = {"own_expert": confidence**2, "uniform": 1.0, "in_context": 1.0}
    weights = averaging_weights(losses, prior, evidence=evidence)
    average = held_out_logits(scorer, held_out, lambda found: found.average(helpers, weights))
    losses["mixture"] = nn.functional.cross_entropy(average / temperature, labels, reduction="none")
    # A candidate that diverged in one fold has no losses there and cannot be compared.
    trained = [
        name
        for name in held_out[0][0].learned
        if name != "in_context" and all(name in found.learned for found, _ in held_out)
    ]
    apart = {
        name: held_out_logits(scorer, held_out, partial(_learned, name=name)) for name in trained
    }
    losses |= {name: calibrated_losses(logits, labels) for name, logits in apart.items()}
    # The best of the untrained candidates is the bar: a trained one must beat them all.
    untrained = {"mixture": average, **{name: averaged[name] for name in ("own_expert", "uniform")}}
    baseline = min(
        (Baseline(name, calibrated_losses(logits, labels)) for name, logits in untrained.items()),
        key=lambda bar: float(bar.losses.mean()),
    )
    decision = guard(losses, weights, confidence=confidence, baseline=baseline, margin=margin)
    chosen = {**untrained, **apart}[decision.chosen]
    return replace(decision, prior=prior, evidence=evidence), weights, HeldOut(chosen, labels)


def _labels_of(held_out: Sequence[tuple[Candidates, Split]]) -> torch.Tensor:
    return torch.tensor([label for _, rows in held_out for label in rows.labels])


def _own_alone(found: Candidates) -> Mixture:
    return Mixture.of([found.own])


def _learned(found: Candidates, name: str) -> Mixture:
    return found.learned[name]
