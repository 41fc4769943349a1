"""Interpolation: the target's own expert and its neighbours' made into one, on the target's own rows, without losing to any of them.

Fixed policies (`frozen`, `anchored`, `free`) train α and, with it, nothing, a little, or everything, as the paper does.
`auto` is for the many targets that have few rows, where all of those lose what mixing had gained:

1. *in context*: the own expert is learned again from nothing inside the mixture, the helpers frozen, so that it takes up only what
   they leave undone. Rates are scaled by the trust N / (N + 64) that N rows deserve.
2. *average*: own expert, uniform mixture and in-context mixture are averaged (all are mixtures of the same experts, so this is one more
   mixture, on outputs where the kind can), weighted by held-out evidence: held-back rows where there are any, else cross-validation
   inside the shots.
3. *joint*, where rows suffice: α and every expert trained together from the uniform mixture, as the authors do.
4. *guard*: where held-out rows say clearly that the own expert, the uniform mixture or the joint one alone is better than the average,
   that one is taken instead.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pidep.experts.folder import Expert
from pidep.experts.kinds import kind_named
from pidep.experts.mixture import AlphaPer, Mixture, fresh
from pidep.tasks.data import Split
from pidep.tuning.trainer import OnStep, Schedule, Scorer, TrainReport, fit, predict_logits

__all__ = ["Decision", "InterpolateSettings", "Interpolated", "Policy", "folds_of", "interpolate", "train_together", "trust"]

Policy = Literal["auto", "frozen", "anchored", "free", "uniform"]
Chosen = Literal["mixture", "own_expert", "uniform", "joint"]
TrainOwn = Callable[[Split], Expert]
_PRIOR_ROWS = 64
_ENOUGH_ROWS = 32
"""With fewer, folds cannot tell whether training all experts together throws away what mixing gained (decision 004)."""
_WHERE_HELD_BACK = 2.0
"""Standard errors by which joint training must lead on rows held back, which have chosen its best step already."""
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
class Decision:
    """What was taken, and the held-out figures it was taken on."""

    policy: Policy
    chosen: Chosen
    """`mixture`, the average, or what the guard took instead: `own_expert`, `uniform` or `joint`."""
    why: str
    rows: int = 0
    """Held-out rows behind the losses."""
    losses: dict[str, float] = field(default_factory=dict)
    """Held-out cross-entropy (nats a row) of each candidate."""
    weights: dict[str, float] = field(default_factory=dict)
    """Share of each candidate in the average."""

    def to_json(self) -> dict[str, Any]:
        """For the run folder."""
        return asdict(self)


@dataclass(frozen=True)
class Interpolated:
    """The result; `mixture` is what to serve."""

    mixture: Mixture
    uniform: Mixture
    experts: tuple[str, ...]
    """Who is mixed, in the order of α."""
    decision: Decision
    reports: dict[str, TrainReport]


@dataclass(frozen=True)
class _Candidates:
    """What one set of training rows gives."""

    own: Expert
    in_context: Mixture
    """The own expert learned in the mixture, then the helpers."""
    joint: Mixture | None = None
    """All of them trained together, where rows suffice."""

    def average(self, helpers: Sequence[Expert], weights: Mapping[str, float]) -> Mixture:
        """Σ_c w_c θ_c as one mixture of own, in-context own, and helpers."""
        learned = replace(self.own, sites=dict(self.in_context.part(0)))
        mixture = Mixture.of([self.own, learned, *helpers], on_outputs=True)
        count = 1 + len(helpers)
        uniform = weights["uniform"] / count
        with torch.no_grad():
            for (_, site), (_, inner) in zip(mixture.by_name(), self.in_context.by_name(), strict=True):
                alpha = inner.alpha() * weights["in_context"]
                share = torch.cat([torch.tensor([weights["own_expert"] + uniform]), alpha[:1], alpha[1:] + uniform])
                site.alpha_logits.copy_(share.clamp(min=_NEGLIGIBLE).log())
        return mixture


def trust(rows: int) -> float:
    """How far `rows` training rows are believed against the prior that mixing is good: N / (N + 64), in (0, 1)."""
    return rows / (rows + _PRIOR_ROWS)


def folds_of(labels: Sequence[int], *, count: int, seed: int) -> list[list[int]]:
    """Row numbers in `count` stratified folds (fewer, but two at least, where a class has fewer rows)."""
    classes: dict[int, list[int]] = {}
    for row, label in enumerate(labels):
        classes.setdefault(label, []).append(row)
    smallest = min(len(rows) for rows in classes.values())
    count = max(2, min(count, smallest))
    folds: list[list[int]] = [[] for _ in range(count)]
    shuffler, dealt = random.Random(seed), 0
    for label in sorted(classes):
        shuffler.shuffle(classes[label])
        start = dealt if smallest < count else 0  # no fold is empty where every class has one row
        for position, row in enumerate(classes[label], start):
            folds[position % count].append(row)
        dealt += len(classes[label])
    return folds


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
        train_own: trains an own expert on other rows by the recipe of `own`; called once a fold under `auto`.
        similarities: predicted similarity of each helper, for `alpha_start="similarity"`.

    Raises:
        ExpertError: the experts are of different kinds or sites.
    """
    uniform = Mixture.of([own, *helpers])
    names = (own.name, *(helper.name for helper in helpers))
    if settings.policy == "auto":
        kept = (checkpoint, resume)
        return _auto(scorer, own, helpers, train, validation, settings, train_own, uniform, kept, on_step)
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


def _start_at(mixture: Mixture, similarities: Sequence[float]) -> None:
    """α proportional to the similarities; the target is as similar to itself as anything can be: 1."""
    start = torch.tensor([1.0, *similarities]).clamp(min=_NEGLIGIBLE).log()
    with torch.no_grad():
        for parameter in mixture.alpha_parameters():
            parameter.copy_(start)


def _auto(
    scorer: Scorer,
    own: Expert,
    helpers: Sequence[Expert],
    train: Split,
    validation: Split | None,
    settings: InterpolateSettings,
    train_own: TrainOwn,
    uniform: Mixture,
    kept: tuple[Path | None, bool],
    on_step: OnStep | None,
) -> Interpolated:
    together = len(train.labels) >= _ENOUGH_ROWS
    candidates, reports = _learn(scorer, own, helpers, train, validation, settings, on_step, *kept, together=together)
    held: list[tuple[_Candidates, Split]] = []
    if validation is not None:
        held.append((candidates, validation))
    else:
        for rows in folds_of(train.labels, count=settings.folds, seed=settings.schedule.seed):
            rest = train.take(row for row in range(len(train.labels)) if row not in set(rows))
            held.append((_learn(scorer, train_own(rest), helpers, rest, None, settings, on_step, together=together)[0], train.take(rows)))
    believed = trust(len(train.labels))
    num_held = sum(len(split.labels) for _, split in held)
    # folds of the shots judge other experts than those that are averaged, on rows chosen balanced: far less evidence than rows held back
    evidence = believed * (num_held if validation is not None else math.sqrt(num_held))
    lead = 1.0 if validation is None else _WHERE_HELD_BACK
    decision, weights = _decide(scorer, helpers, held, believed=believed, evidence=evidence, lead=lead)
    names = (own.name, *(helper.name for helper in helpers))
    if decision.chosen == "own_expert":
        return Interpolated(Mixture.of([own]), uniform, (own.name,), decision, reports)
    if decision.chosen == "uniform":
        return Interpolated(Mixture.of([own, *helpers], on_outputs=True), uniform, names, decision, reports)
    if decision.chosen == "joint" and candidates.joint is not None:
        return Interpolated(candidates.joint, uniform, names, decision, reports)
    average = candidates.average(helpers, weights)
    return Interpolated(average, uniform, (own.name, f"{own.name} (in context)", *names[1:]), decision, reports)


def _learn(
    scorer: Scorer,
    own: Expert,
    helpers: Sequence[Expert],
    train: Split,
    validation: Split | None,
    settings: InterpolateSettings,
    on_step: OnStep | None,
    checkpoint: Path | None = None,
    resume: bool = False,
    *,
    together: bool = False,
) -> tuple[_Candidates, dict[str, TrainReport]]:
    """Learn the own expert again, from nothing, inside the mixture; helpers stay as they are, α moves a little. Then all together."""
    kind = kind_named(own.kind)
    size = kind.size_of(next(iter(own.sites.values())))
    start = fresh(scorer.backbone.model, sorted(own.sites), kind=own.kind, size=size)
    mixture = Mixture.of([replace(own, sites=dict(start)), *helpers], per=settings.alpha_per, num_learned=1, on_outputs=True)
    believed = trust(len(train.labels))
    groups = [
        (mixture.alpha_parameters(), settings.alpha_learning_rate * believed / 2),
        (mixture.expert_parameters(), settings.own_learning_rate * believed),
    ]
    whole = settings.schedule
    # weight decay would pull α to uniform, and a fresh expert is small anyway
    schedule = replace(whole, weight_decay=0.0, fingerprint=f"{whole.fingerprint} in context, on outputs")
    report = fit(scorer, mixture, groups, train, validation, schedule, checkpoint=checkpoint, resume=resume, on_step=on_step)
    reports = {"in_context": report}
    if not together:
        return _Candidates(own, mixture), reports
    beside = None if checkpoint is None else checkpoint.with_name(f"{checkpoint.name}-joint")
    schedule = replace(whole, phase=f"{whole.phase}, all together", fingerprint=f"{whole.fingerprint} joint")
    joint = Mixture.of([own, *helpers], per=settings.alpha_per)
    reports["joint"] = train_together(
        scorer, joint, train, validation, schedule, settings.own_learning_rate, checkpoint=beside, resume=resume, on_step=on_step
    )
    return _Candidates(own, mixture, joint), reports


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
    groups = [(mixture.alpha_parameters(), rate), (mixture.expert_parameters(), rate)]
    return fit(scorer, mixture, groups, train, validation, schedule, checkpoint=checkpoint, resume=resume, on_step=on_step)


def _decide(
    scorer: Scorer, helpers: Sequence[Expert], held: Sequence[tuple[_Candidates, Split]], *, believed: float, evidence: float, lead: float
) -> tuple[Decision, dict[str, float]]:
    """What to take, and the weights of what is averaged, by held-out losses.

    w ∝ prior · exp(-evidence · mean loss): pseudo-Bayesian model averaging (Yao et al., 2018), which takes evidence = rows and is known
    to be too sure of itself. What is averaged has one temperature. Joint training, which is of another confidence, is held against
    the best of the others, each at a temperature of its own.
    """
    labels = torch.tensor([label for _, rows in held for label in rows.labels])

    def logits(mixture_of: Callable[[_Candidates], Mixture]) -> Tensor:
        return torch.cat([predict_logits(scorer, rows.rows, mixture_of(found)) for found, rows in held])

    averaged = {
        "own_expert": logits(lambda found: Mixture.of([found.own])),
        "uniform": logits(lambda found: Mixture.of([found.own, *helpers], on_outputs=True)),
        "in_context": logits(lambda found: found.in_context),
    }
    losses, temperature = _calibrated(averaged, labels)
    prior = {"own_expert": believed**2, "uniform": 1.0, "in_context": 1.0}
    score = {name: math.log(prior[name]) - evidence * float(loss.mean()) for name, loss in losses.items()}
    top = max(score.values())
    raw = {name: math.exp(value - top) for name, value in score.items()}
    weights = {name: value / sum(raw.values()) for name, value in raw.items()}
    average = logits(lambda found: found.average(helpers, weights))
    losses["mixture"] = nn.functional.cross_entropy(average / temperature, labels, reduction="none")
    joint = [(found.joint, rows) for found, rows in held if found.joint is not None]
    if not joint:
        return _guard(losses, weights, {}, believed=believed), weights
    together = {"joint": torch.cat([predict_logits(scorer, rows.rows, mixture) for mixture, rows in joint])}
    rivals = {"mixture": average, **{name: averaged[name] for name in ("own_expert", "uniform")}}
    at_best = {name: _calibrated({name: value}, labels)[0][name] for name, value in (rivals | together).items()}
    losses["joint"] = at_best["joint"]
    rival = min((at_best[name] for name in rivals), key=lambda loss: float(loss.mean()))
    return _guard(losses, weights, {"joint": rival}, believed=believed, lead=lead), weights


def _calibrated(logits: Mapping[str, Tensor], labels: Tensor) -> tuple[dict[str, Tensor], float]:
    """Cross-entropies by row at the one of a few temperatures where their sum is least, and it."""

    def losses_at(temperature: float) -> dict[str, Tensor]:
        return {name: nn.functional.cross_entropy(value / temperature, labels, reduction="none") for name, value in logits.items()}

    temperature = min((1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0), key=lambda value: sum(float(loss.sum()) for loss in losses_at(value).values()))
    return losses_at(temperature), temperature


def _guard(
    losses: Mapping[str, Tensor], weights: Mapping[str, float], rivals: Mapping[str, Tensor], *, believed: float, lead: float = 1.0
) -> Decision:
    """Take the average unless held-out rows say that another choice is better, by more standard errors the fewer rows there are.

    Args:
        losses: of every candidate and of the average (`mixture`), by row.
        rivals: losses that a candidate is held against instead of the average's.
        lead: standard errors, beside those for few rows, that joint training needs.
    """
    means = {name: float(loss.mean()) for name, loss in losses.items()}
    average = losses["mixture"]
    rows = len(average)
    simple: Chosen = "own_expert" if means["own_expert"] <= means["uniform"] else "uniform"
    contenders: tuple[Chosen, ...] = ("joint", simple) if "joint" in losses else (simple,)
    gaps = {name: rivals.get(name, average) - losses[name] for name in contenders}
    needed = {name: float(gap.std() / math.sqrt(rows)) / believed if rows > 1 else math.inf for name, gap in gaps.items()}
    needed |= {"joint": needed["joint"] * lead} if "joint" in needed else {}
    clear = [name for name in contenders if float(gaps[name].mean()) > needed[name]]
    # joint training that is clear is better than the simple choice, too
    other: Chosen = clear[0] if clear else min(contenders, key=lambda name: means[name])
    chosen: Chosen = other if clear else "mixture"
    against = float(rivals.get(other, average).mean())
    figures = f"held-out loss {against:.3f}, {other.replace('_', ' ')} {means[other]:.3f} (counts from {needed[other]:.3f}, {rows} rows)"
    why = f"nothing else is clearly better: {figures}" if chosen == "mixture" else f"the average is clearly worse: {figures}"
    rounded = {name: round(value, 4) for name, value in weights.items()}
    return Decision("auto", chosen, why, rows, {name: round(value, 5) for name, value in means.items()}, rounded)
