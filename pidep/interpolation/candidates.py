"""The candidates of `auto`: mixtures learned in different ways on one set of rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from pidep.adapters.kinds import adapter_kind
from pidep.adapters.mixture import Mixture, fresh
from pidep.experts.folder import Expert
from pidep.interpolation.held_out import HeldOut, confidence_in, stratified_folds
from pidep.interpolation.settings import InterpolateSettings
from pidep.tasks.data import Split
from pidep.training.loop import (
    Diverged,
    OnStep,
    ParameterGroups,
    Schedule,
    TrainReport,
    fit,
)
from pidep.training.own_expert import TrainOwn
from pidep.training.scorer import Scorer, predict_logits

__all__ = [
    "AT_HIGH_RATE",
    "ENOUGH_ROWS",
    "HIGH_RATE",
    "NEGLIGIBLE",
    "CandidateTrainer",
    "Candidates",
    "candidate_names",
    "folds_can_tell",
    "held_back",
    "held_out_logits",
    "one_rate_for_all",
    "own_on_folds",
    "why_not_tried",
]

HIGH_RATE = 4.0
"""Factor on the peak learning rate of candidates at the high rate."""
AT_HIGH_RATE = ("own_expert_high_rate", "joint_high_rate")
"""Candidates at the high rate."""
ENOUGH_ROWS = 32
"""Training rows from which folds can tell candidates apart (decision 004)."""
NEGLIGIBLE = 1e-6
"""Least share of an expert: α is a softmax, so its logits cannot express a share of zero."""


@dataclass(frozen=True)
class Candidates:
    """The own expert and the mixtures learned on one set of rows."""

    own: Expert
    learned: Mapping[str, Mixture] = field(default_factory=dict)
    """By name; `in_context` holds the relearned own expert, then the helpers."""

    def without(self, name: str) -> Candidates:
        """All candidates but one."""
        others = {other: mixture for other, mixture in self.learned.items() if other != name}
        return replace(self, learned=others)

    def average(self, helpers: Sequence[Expert], weights: Mapping[str, float]) -> Mixture:
        """Σ_c w_c θ_c over `own_expert`, `uniform` and `in_context`, as one mixture.

        All three are mixtures of the same experts, so their average is one more mixture: of the
        own expert, the relearned own expert and the helpers.
        """
        in_context = self.learned["in_context"]
        # The experts of the average: own, own relearned in context, helpers. The α of each is the
        # sum of its shares in the three candidates.
        relearned = replace(self.own, sites=dict(in_context.part(0)))
        mixture = Mixture.of([self.own, relearned, *helpers], on_outputs=True)
        # The uniform mixture's share goes to its K experts in equal parts.
        uniform = weights["uniform"] / (1 + len(helpers))
        sites = zip(mixture.by_name(), in_context.by_name(), strict=True)
        with torch.no_grad():
            for (_, site), (_, inner) in sites:
                alpha = inner.alpha() * weights["in_context"]
                own = alpha.new_tensor([weights["own_expert"] + uniform])
                share = torch.cat([own, alpha[:1], alpha[1:] + uniform])
                site.alpha_logits.copy_(share.clamp(min=NEGLIGIBLE).log())
        return mixture


@dataclass(frozen=True)
class CandidateTrainer:
    """Trains candidates, on one set of rows after another."""

    scorer: Scorer
    helpers: tuple[Expert, ...]
    settings: InterpolateSettings
    train_own: TrainOwn
    checkpoint: Path | None = None
    resume: bool = False
    on_step: OnStep | None = None

    def train(
        self,
        names: Sequence[str],
        own: Expert,
        train: Split,
        validation: Split | None = None,
        *,
        keep: bool = False,
    ) -> tuple[Candidates, dict[str, TrainReport]]:
        """The candidates of these names, and how they were trained.

        Args:
            keep: write checkpoints, and go on from them under `resume`.

        Raises:
            Diverged: a loss became NaN or Inf.
        """
        learned, reports = {}, {}
        for name in names:
            # The own expert brings its own training; the others are mixtures that `fit` trains.
            if name == "own_expert_high_rate":
                learned[name] = Mixture.of([self.train_own(train, HIGH_RATE)])
                continue
            groups, schedule, learned[name] = (
                self._in_context(own, train) if name == "in_context" else self._joint(own, name)
            )
            reports[name] = fit(
                self.scorer,
                learned[name],
                groups,
                train,
                validation,
                schedule,
                checkpoint=self._checkpoint_of(name) if keep else None,
                resume=self.resume and keep,
                on_step=self.on_step,
            )
        return Candidates(own, learned), reports

    def train_on_folds(self, names: Sequence[str], train: Split) -> list[tuple[Candidates, Split]]:
        """For each fold: the candidates learned without it, and its rows.

        A candidate at the high rate that diverges is left out of its fold.
        """
        # The run's seed: the same run always has the same folds.
        seed = self.settings.schedule.seed
        folds = stratified_folds(train.labels, count=self.settings.folds, seed=seed)
        held_out = []
        for rows in folds:
            left_out = set(rows)
            rest = train.take(row for row in range(len(train.labels)) if row not in left_out)
            # The own expert of all shots has seen the fold, so the fold needs another one.
            own = self.train_own(rest, 1.0)
            usual = [name for name in names if name not in AT_HIGH_RATE]
            learned = dict(self.train(usual, own, rest)[0].learned)
            # One by one: the divergence of one candidate must not cost the others.
            for name in (name for name in names if name in AT_HIGH_RATE):
                with suppress(Diverged):
                    learned |= self.train([name], own, rest)[0].learned
            held_out.append((Candidates(own, learned), train.take(rows)))
        return held_out

    def _checkpoint_of(self, name: str) -> Path | None:
        place = self.checkpoint
        return None if place is None else place.with_name(f"{place.name}-{name}")

    def _in_context(self, own: Expert, train: Split) -> tuple[ParameterGroups, Schedule, Mixture]:
        """The own expert, learned from nothing inside the mixture with the helpers frozen.

        It learns what the helpers leave undone. α moves a little.
        """
        settings, confidence = self.settings, confidence_in(len(train.labels))
        size = adapter_kind(own.kind).size_of(next(iter(own.sites.values())))
        start = fresh(self.scorer.backbone.model, sorted(own.sites), kind=own.kind, rank=size)
        experts = [replace(own, sites=dict(start)), *self.helpers]
        mixture = Mixture.of(experts, per=settings.alpha_per, num_learned=1, on_outputs=True)
        groups = [
            # Few rows are little reason to leave the uniform mixture, so both rates are small.
            (mixture.alpha_parameters(), settings.alpha_learning_rate * confidence / 2),
            (mixture.expert_parameters(), settings.own_learning_rate * confidence),
        ]
        whole = settings.schedule
        # Weight decay would pull α to uniform, and a fresh expert is small anyway.
        schedule = replace(
            whole, weight_decay=0.0, fingerprint=f"{whole.fingerprint} in context, on outputs"
        )
        return groups, schedule, mixture

    def _joint(self, own: Expert, name: str) -> tuple[ParameterGroups, Schedule, Mixture]:
        """α and all experts at one peak learning rate, from the uniform mixture."""
        factor = HIGH_RATE if name == "joint_high_rate" else 1.0
        mixture = Mixture.of([own, *self.helpers], per=self.settings.alpha_per)
        whole = self.settings.schedule
        schedule = replace(
            whole,
            phase=f"{whole.phase}, joint",
            fingerprint=f"{whole.fingerprint} {name}",
        )
        rate = self.settings.own_learning_rate * factor
        return one_rate_for_all(mixture, rate), schedule, mixture


def folds_can_tell(num_rows: int) -> bool:
    """Whether folds of so few rows can tell if joint training loses what mixing gained."""
    return num_rows >= ENOUGH_ROWS


def candidate_names(train: Split, validation: Split | None) -> tuple[str, ...]:
    """The candidates to train. Joint training and the high rate need at least 32 rows."""
    if not folds_can_tell(len(train.labels)):
        return ("in_context",)
    # Held-back rows stop a candidate at the high rate early, and full-data runs have steps
    # enough at the usual rate, so the high rate adds nothing there (decision 004).
    if validation is not None:
        return ("in_context", "joint")
    return ("in_context", "joint", *AT_HIGH_RATE)


def why_not_tried(train: Split, validation: Split | None) -> dict[str, str]:
    """The candidates that `candidate_names` leaves out, with the reason."""
    rows = len(train.labels)
    why = (
        "a high rate adds nothing where rows are held back"
        if folds_can_tell(rows)
        else f"needs at least {ENOUGH_ROWS} training rows, found {rows}"
    )
    tried = candidate_names(train, validation)
    return {name: why for name in ("joint", *AT_HIGH_RATE) if name not in tried}


def one_rate_for_all(mixture: Mixture, rate: float) -> ParameterGroups:
    """α and all experts at one peak learning rate."""
    return [(mixture.alpha_parameters(), rate), (mixture.expert_parameters(), rate)]


def held_out_logits(
    scorer: Scorer,
    held_out: Sequence[tuple[Candidates, Split]],
    mixture_of: Callable[[Candidates], Mixture],
) -> Tensor:
    """`[N, C]` logits of all held-out rows, by the mixture learned without them."""
    return torch.cat(
        [predict_logits(scorer, rows.rows, mixture_of(found)) for found, rows in held_out]
    )


def held_back(scorer: Scorer, validation: Split | None, mixture: Mixture) -> HeldOut | None:
    """What a mixture says about rows that were held back from it; None where none were."""
    if validation is None:
        return None
    return HeldOut(
        predict_logits(scorer, validation.rows, mixture), torch.tensor(validation.labels)
    )


def own_on_folds(trainer: CandidateTrainer, train: Split, *, high_rate: bool) -> HeldOut | None:
    """What own experts say about folds that did not train them; None where training diverges."""
    name = "own_expert_high_rate"
    held_out = trainer.train_on_folds((name,) if high_rate else (), train)
    if high_rate and any(name not in found.learned for found, _ in held_out):
        return None
    logits = held_out_logits(
        trainer.scorer,
        held_out,
        lambda found: found.learned[name] if high_rate else Mixture.of([found.own]),
    )
    return HeldOut(logits, torch.tensor([label for _, rows in held_out for label in rows.labels]))
