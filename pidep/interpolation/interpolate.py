"""Interpolation: the target's own expert and its neighbours' made into one, on the target's own rows, without losing to any of them.

Fixed policies (`frozen`, `anchored`, `free`) train α and, with it, nothing, a little, or everything, as the paper does.
`auto` is for the many targets that have few rows, where all of those lose what mixing had gained:

1. *in context*: the own expert is learned again from nothing inside the mixture, the helpers frozen, so that it takes up only what
   they leave undone. Rates are scaled by the trust N / (N + 64) that N rows deserve.
2. *average*: own expert, uniform mixture and in-context mixture are averaged (all are mixtures of the same experts, so this is one more
   mixture, on outputs where the kind can), weighted by held-out evidence: held-back rows where there are any, else cross-validation
   inside the shots.
3. *trained together*, where rows suffice: α and every expert from the uniform mixture, as the authors do (`joint`). Of few shots this
   and the own expert are also trained harder, at four times the rate: gentle training keeps what a related helper knows and learns too
   little where none is related.
4. *guard*: where held-out rows say clearly that one of those alone is better than the average, it is taken instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from pidep.adapters.kinds import adapter_kind
from pidep.adapters.mixture import AlphaPer, Mixture, fresh
from pidep.experts.folder import Expert
from pidep.interpolation.guard import Decision, averaging_weights, calibrated, folds_of, guard, trust
from pidep.tasks.data import Split
from pidep.training.loop import Diverged, OnStep, Schedule, Scorer, TrainReport, fit, predict_logits

__all__ = ["InterpolateSettings", "Interpolated", "Policy", "TrainOwn", "interpolate", "train_together", "tuned_own"]

Policy = Literal["auto", "frozen", "anchored", "free", "uniform"]
TrainOwn = Callable[[Split, float], Expert]
"""Trains the own expert on other rows, at so many times its peak learning rate."""
Groups = list[tuple[list[nn.Parameter], float]]
"""Parameters and their peak learning rate."""
_ENOUGH_ROWS = 32
"""With fewer, folds cannot tell whether training all experts together throws away what mixing gained (decision 004)."""
_WHERE_HELD_BACK = 2.0
"""Standard errors by which joint training must lead on rows held back, which have chosen its best step already."""
_HARDER = 4.0
"""Times the peak learning rate."""
_HARD = ("own_expert_harder", "joint_harder")
_NEGLIGIBLE = 1e-6


@dataclass(frozen=True)
class InterpolateSettings:
    """How a mixture is learned; `schedule` carries steps, batches, seed and fingerprint."""

    schedule: Schedule
    policy: Policy = "auto"
    alpha_per: AlphaPer = "site"
    alpha_start: Literal["uniform", "similarity"] = "uniform"
    alpha_learning_rate: float = 2e-2
    own_learning_rate: float = 1e-3
    expert_learning_rate: float = 1e-4
    """Of all experts under `anchored`."""
    folds: int = 3


@dataclass(frozen=True)
class Interpolated:
    """The result; `mixture` is what to serve."""

    mixture: Mixture
    uniform: Mixture
    experts: tuple[str, ...]
    """Who is mixed, in the order of α."""
    decision: Decision
    reports: dict[str, TrainReport]


def interpolate(
    scorer: Scorer,
    own: Expert,
    helpers: Sequence[Expert],
    train: Split,
    validation: Split | None,
    settings: InterpolateSettings,
    *,
    train_own: TrainOwn,
    similarities: Sequence[float] | None = None,
    checkpoint: Path | None = None,
    resume: bool = False,
    on_step: OnStep | None = None,
) -> Interpolated:
    """Learn the mixture of the own expert and its helpers on the target's training rows (π-Tuning, section 3.3).

    Args:
        train_own: trains an own expert on other rows by the recipe of `own`; called for every fold under `auto`.
        similarities: predicted similarity of each helper, for `alpha_start="similarity"`.

    Raises:
        ExpertError: the experts are of different kinds or sites.
    """
    uniform = Mixture.of([own, *helpers])
    names = (own.name, *(helper.name for helper in helpers))
    if settings.policy == "auto":
        learner = _Learner(scorer, tuple(helpers), settings, train_own, checkpoint, resume, on_step)
        return _auto(learner, own, train, validation, uniform)
    trained = Mixture.of([own, *helpers], per=settings.alpha_per)
    if settings.alpha_start == "similarity" and similarities is not None:
        _start_at(trained, similarities)
    if settings.policy == "uniform":
        return Interpolated(trained, uniform, names, Decision("uniform", "uniform", "asked for"), {})
    rate = {"frozen": 0.0, "anchored": settings.expert_learning_rate, "free": settings.own_learning_rate}[settings.policy]
    groups = [(trained.alpha_parameters(), settings.alpha_learning_rate), (trained.expert_parameters(), rate)]
    report = fit(scorer, trained, groups, train, validation, settings.schedule, checkpoint=checkpoint, resume=resume, on_step=on_step)
    decision = Decision(settings.policy, "mixture", "asked for")
    return Interpolated(trained, uniform, names, decision, {"interpolation": report})


def train_together(
    scorer: Scorer,
    mixture: Mixture,
    train: Split,
    validation: Split | None,
    schedule: Schedule,
    rate: float,
    *,
    checkpoint: Path | None = None,
    resume: bool = False,
    on_step: OnStep | None = None,
) -> TrainReport:
    """Train α and all experts at one peak learning rate, as the authors do."""
    groups = _all_at(mixture, rate)
    return fit(scorer, mixture, groups, train, validation, schedule, checkpoint=checkpoint, resume=resume, on_step=on_step)


def _all_at(mixture: Mixture, rate: float) -> Groups:
    return [(mixture.alpha_parameters(), rate), (mixture.expert_parameters(), rate)]


def tuned_own(scorer: Scorer, own: Expert, train: Split, settings: InterpolateSettings, *, train_own: TrainOwn) -> tuple[Expert, Decision]:
    """The own expert of few shots, trained harder where folds of the shots say clearly that it is better so; no helpers are asked."""
    if len(train.labels) < _ENOUGH_ROWS:
        return own, Decision("auto", "own_expert", f"with fewer than {_ENOUGH_ROWS} rows folds cannot tell", len(train.labels))
    learner = _Learner(scorer, (), settings, train_own)
    held = learner.folds(("own_expert_harder",), train)
    if any(not found.learned for found, _ in held):
        return own, Decision("auto", "own_expert", "training diverged at a higher rate", len(train.labels))
    labels = torch.tensor([label for _, rows in held for label in rows.labels])
    mixtures: dict[str, Callable[[_Candidates], Mixture]] = {
        "own_expert": lambda found: Mixture.of([found.own]),
        "own_expert_harder": lambda found: found.learned["own_expert_harder"],
    }
    losses = {name: _at_its_best(_held_logits(scorer, held, mixture), labels) for name, mixture in mixtures.items()}
    decision = guard(losses, {}, believed=trust(len(train.labels)), usual="own_expert")
    if decision.chosen == "own_expert":
        return own, decision
    try:
        return train_own(train, _HARDER), decision
    except Diverged:
        return own, replace(decision, chosen="own_expert", why="training diverged at a higher rate, on all rows")


def _start_at(mixture: Mixture, similarities: Sequence[float]) -> None:
    """α proportional to the similarities; the target is as similar to itself as anything can be: 1."""
    start = torch.tensor([1.0, *similarities]).clamp(min=_NEGLIGIBLE).log()
    with torch.no_grad():
        for parameter in mixture.alpha_parameters():
            parameter.copy_(start)


@dataclass(frozen=True)
class _Candidates:
    """What one set of training rows gives."""

    own: Expert
    learned: Mapping[str, Mixture] = field(default_factory=dict)
    """By name: the own expert learned in context, then the helpers; and what is not averaged, trained together or harder."""

    def without(self, name: str) -> _Candidates:
        """All but one of what was learned."""
        return replace(self, learned={other: mixture for other, mixture in self.learned.items() if other != name})

    def average(self, helpers: Sequence[Expert], weights: Mapping[str, float]) -> Mixture:
        """Σ_c w_c θ_c as one mixture of own, in-context own, and helpers."""
        learned = replace(self.own, sites=dict(self.learned["in_context"].part(0)))
        mixture = Mixture.of([self.own, learned, *helpers], on_outputs=True)
        count = 1 + len(helpers)
        uniform = weights["uniform"] / count
        with torch.no_grad():
            for (_, site), (_, inner) in zip(mixture.by_name(), self.learned["in_context"].by_name(), strict=True):
                alpha = inner.alpha() * weights["in_context"]
                share = torch.cat([torch.tensor([weights["own_expert"] + uniform]), alpha[:1], alpha[1:] + uniform])
                site.alpha_logits.copy_(share.clamp(min=_NEGLIGIBLE).log())
        return mixture


@dataclass(frozen=True)
class _Learner:
    """Learns candidates, on one set of rows after another."""

    scorer: Scorer
    helpers: tuple[Expert, ...]
    settings: InterpolateSettings
    train_own: TrainOwn
    checkpoint: Path | None = None
    resume: bool = False
    on_step: OnStep | None = None

    def learn(
        self, names: Sequence[str], own: Expert, train: Split, validation: Split | None = None, *, keep: bool = False
    ) -> tuple[_Candidates, dict[str, TrainReport]]:
        """The candidates of these names, and how they were trained; `keep` checkpoints, and goes on from them.

        Raises:
            Diverged: a loss became NaN or Inf.
        """
        learned, reports = {}, {}
        for name in names:
            if name == "own_expert_harder":
                learned[name] = Mixture.of([self.train_own(train, _HARDER)])
                continue
            groups, schedule, learned[name] = self._in_context(own, train) if name == "in_context" else self._together(own, name)
            place = self.checkpoint.with_name(f"{self.checkpoint.name}-{name}") if keep and self.checkpoint is not None else None
            reports[name] = fit(
                self.scorer,
                learned[name],
                groups,
                train,
                validation,
                schedule,
                checkpoint=place,
                resume=self.resume and keep,
                on_step=self.on_step,
            )
        return _Candidates(own, learned), reports

    def _in_context(self, own: Expert, train: Split) -> tuple[Groups, Schedule, Mixture]:
        """The own expert learned again, from nothing, inside the mixture; helpers stay as they are, α moves a little."""
        settings, believed = self.settings, trust(len(train.labels))
        size = adapter_kind(own.kind).size_of(next(iter(own.sites.values())))
        start = fresh(self.scorer.backbone.model, sorted(own.sites), kind=own.kind, size=size)
        experts = [replace(own, sites=dict(start)), *self.helpers]
        mixture = Mixture.of(experts, per=settings.alpha_per, num_learned=1, on_outputs=True)
        groups = [
            (mixture.alpha_parameters(), settings.alpha_learning_rate * believed / 2),
            (mixture.expert_parameters(), settings.own_learning_rate * believed),
        ]
        # weight decay would pull α to uniform, and a fresh expert is small anyway
        fingerprint = f"{settings.schedule.fingerprint} in context, on outputs"
        return groups, replace(settings.schedule, weight_decay=0.0, fingerprint=fingerprint), mixture

    def _together(self, own: Expert, name: str) -> tuple[Groups, Schedule, Mixture]:
        """α and all experts at one peak learning rate."""
        rate = self.settings.own_learning_rate * (_HARDER if name == "joint_harder" else 1.0)
        mixture, whole = Mixture.of([own, *self.helpers], per=self.settings.alpha_per), self.settings.schedule
        schedule = replace(whole, phase=f"{whole.phase}, all together", fingerprint=f"{whole.fingerprint} {name}")
        return _all_at(mixture, rate), schedule, mixture

    def folds(self, names: Sequence[str], train: Split) -> list[tuple[_Candidates, Split]]:
        """What is learned without each fold, and the fold. What is trained too hard to end well on the rest is left out."""
        held = []
        for rows in folds_of(train.labels, count=self.settings.folds, seed=self.settings.schedule.seed):
            left_out = set(rows)
            rest = train.take(row for row in range(len(train.labels)) if row not in left_out)
            own = self.train_own(rest, 1.0)
            learned = dict(self.learn([name for name in names if name not in _HARD], own, rest)[0].learned)
            for name in (name for name in names if name in _HARD):
                with suppress(Diverged):
                    learned |= self.learn([name], own, rest)[0].learned
            held.append((_Candidates(own, learned), train.take(rows)))
        return held


def _auto(learner: _Learner, own: Expert, train: Split, validation: Split | None, uniform: Mixture) -> Interpolated:
    names, believed = _names(train, validation), trust(len(train.labels))
    if validation is not None:
        found, reports = learner.learn(names, own, train, validation, keep=True)
        evidence = believed * len(validation.labels)
        decision, weights = _decide(learner, [(found, validation)], believed=believed, evidence=evidence, lead=_WHERE_HELD_BACK)
    else:
        decision, weights, found, reports = _by_folds(learner, names, own, train, believed=believed)
    everyone = (own.name, *(helper.name for helper in learner.helpers))
    if decision.chosen == "mixture":
        average = found.average(learner.helpers, weights)
        return Interpolated(average, uniform, (own.name, f"{own.name} (in context)", *everyone[1:]), decision, reports)
    if decision.chosen == "own_expert":
        return Interpolated(Mixture.of([own]), uniform, (own.name,), decision, reports)
    if decision.chosen == "uniform":
        return Interpolated(Mixture.of([own, *learner.helpers], on_outputs=True), uniform, everyone, decision, reports)
    experts = (f"{own.name} (harder)",) if decision.chosen == "own_expert_harder" else everyone
    return Interpolated(found.learned[decision.chosen], uniform, experts, decision, reports)


def _by_folds(
    learner: _Learner, names: Sequence[str], own: Expert, train: Split, *, believed: float
) -> tuple[Decision, dict[str, float], _Candidates, dict[str, TrainReport]]:
    """What folds of the shots decide. On all of the shots only what was chosen is learned; what ends badly there is not asked again."""
    held = learner.folds(names, train)
    while True:
        # they judge other experts than those that are averaged, on rows chosen balanced: far less evidence than rows held back
        decision, weights = _decide(learner, held, believed=believed, evidence=believed * math.sqrt(len(train.labels)))
        wanted = "in_context" if decision.chosen == "mixture" else decision.chosen
        try:
            return decision, weights, *learner.learn([name for name in names if name == wanted], own, train, keep=True)
        except Diverged:
            if wanted not in _HARD:
                raise
            held = [(found.without(wanted), rows) for found, rows in held]


def _names(train: Split, validation: Split | None) -> tuple[str, ...]:
    """What is learned: beside what is averaged, what rows suffice to tell from it."""
    if len(train.labels) < _ENOUGH_ROWS:
        return ("in_context",)
    # rows held back stop what is trained too hard, and leave gentle training all the steps it needs
    return ("in_context", "joint") if validation is not None else ("in_context", "joint", *_HARD)


def _decide(
    learner: _Learner, held: Sequence[tuple[_Candidates, Split]], *, believed: float, evidence: float, lead: float = 1.0
) -> tuple[Decision, dict[str, float]]:
    """What to take, and the weights of what is averaged, by held-out losses.

    What is averaged has one temperature. What is trained together or harder, which is of another confidence, is held against the best
    of the others, each at a temperature of its own.
    """
    scorer, helpers = learner.scorer, learner.helpers
    labels = torch.tensor([label for _, rows in held for label in rows.labels])
    averaged = {
        "own_expert": _held_logits(scorer, held, lambda found: Mixture.of([found.own])),
        "uniform": _held_logits(scorer, held, lambda found: Mixture.of([found.own, *helpers], on_outputs=True)),
        "in_context": _held_logits(scorer, held, lambda found: found.learned["in_context"]),
    }
    losses, temperature = calibrated(averaged, labels)
    weights = averaging_weights(losses, {"own_expert": believed**2, "uniform": 1.0, "in_context": 1.0}, evidence=evidence)
    average = _held_logits(scorer, held, lambda found: found.average(helpers, weights))
    losses["mixture"] = nn.functional.cross_entropy(average / temperature, labels, reduction="none")
    apart = [name for name in held[0][0].learned if name != "in_context" and all(name in found.learned for found, _ in held)]
    for name in apart:
        losses[name] = _at_its_best(_held_logits(scorer, held, partial(_learned, name=name)), labels)
    rivals = [_at_its_best(value, labels) for value in (average, averaged["own_expert"], averaged["uniform"])]
    rival = min(rivals, key=lambda loss: float(loss.mean()))
    return guard(losses, weights, believed=believed, rival=rival, lead=lead), weights


def _learned(found: _Candidates, name: str) -> Mixture:
    return found.learned[name]


def _held_logits(scorer: Scorer, held: Sequence[tuple[_Candidates, Split]], mixture_of: Callable[[_Candidates], Mixture]) -> Tensor:
    """`[N, C]` of all held-out rows, each answered by the mixture of what was learned without it."""
    return torch.cat([predict_logits(scorer, rows.rows, mixture_of(found)) for found, rows in held])


def _at_its_best(logits: Tensor, labels: Tensor) -> Tensor:
    """`[N]` cross-entropies at the temperature that suits these logits."""
    return calibrated({"": logits}, labels)[0][""]
