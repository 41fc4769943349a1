"""The training loop: AdamW, warm-up and linear decay, early stopping on held-back rows, resumable."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from pidep.adapters.mixture import Mixture, attached
from pidep.backbones.backbone import AnswerScorer, Backbone
from pidep.errors import PidepError
from pidep.inputs.row import Input, size_key
from pidep.tasks.data import Split
from pidep.training.checkpoint import Progress, load_checkpoint, save_checkpoint

__all__ = ["Diverged", "Schedule", "Scorer", "TrainReport", "few_shot_share", "fit", "predict_answers", "predict_logits"]

OnStep = Callable[[str, int, int, float], None]
"""Called with phase, step, total steps and loss."""


class Diverged(PidepError):
    """The loss became NaN or Inf."""


@dataclass(frozen=True)
class Schedule:
    """How one phase is trained."""

    phase: str
    steps: int
    batch_size: int
    warmup: float
    weight_decay: float
    eval_every: int
    patience: int
    seed: int
    fingerprint: str


@dataclass(frozen=True)
class Scorer:
    """Scores rows against the texts of a task's labels, or against their own candidates."""

    backbone: Backbone
    label_embeddings: Tensor  # [C, D] fp32, unit rows; no rows where a task has candidates instead; D = 0 for an encoder-decoder
    logit_scale: float
    max_length: int
    label_texts: tuple[str, ...] = ()
    """What an encoder-decoder scores instead of embeddings."""
    max_answer_length: int | None = None
    """Tokens of a free answer, where rows are answered by texts and not by a choice; encoder-decoders only."""

    @cached_property
    def answers(self) -> AnswerScorer:
        """The answers that rows are scored against."""
        return self.backbone.answer_scorer(
            self.label_texts,
            self.label_embeddings,
            logit_scale=self.logit_scale,
            max_answer_length=self.max_answer_length,
        )

    def logits(self, rows: Sequence[Input]) -> Tensor:
        """`[B, C]`, with gradients to whatever is attached."""
        return self.answers.logits(rows, max_length=self.max_length)

    def encoded_logits(self, rows: Sequence[Input]) -> Tensor:
        """`[N, C]` without gradients, for any number of rows."""
        return self.answers.all_logits(rows, max_length=self.max_length)


@dataclass(frozen=True)
class TrainReport:
    """What happened in a phase."""

    steps: int
    best_step: int
    validation_loss: float | None
    history: list[dict[str, float]]


def few_shot_share(rows: int) -> float:
    """Share of a kind's own peak learning rate for a few-shot run: half of it where rows are few and soon known by heart.

    At 16 rows half was best of 1/2, 1, 2 and 4 for adapters and prefixes, at 256 it left both of them undertrained.
    """
    return 0.5 if rows < 128 else 1.0


def predict_logits(scorer: Scorer, rows: Sequence[Input], mixture: Mixture | None = None) -> Tensor:
    """`[N, C]` logits of a mixture, or of the bare backbone."""
    scorer.answers.learn(rows)
    with attached(scorer.backbone.model, mixture):
        return scorer.encoded_logits(rows)


def predict_answers(scorer: Scorer, rows: Sequence[Input], mixture: Mixture | None = None) -> list[str]:
    """The likeliest text of each row, token by token, of a mixture or of the bare encoder-decoder."""
    with attached(scorer.backbone.model, mixture):
        return scorer.backbone.generate(rows, max_length=scorer.max_length, max_new_tokens=scorer.max_answer_length or 1)


def _batches(split: Split, *, batch_size: int, seed: int, start: int) -> Iterator[list[int]]:
    """Endless shuffled batches of rows alike in length; batch number `start` is the same however one gets there."""
    per_epoch = max(1, math.ceil(len(split.rows) / batch_size))
    step = start
    while True:
        epoch, within = divmod(step, per_epoch)
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        order = torch.randperm(len(split.rows), generator=generator).tolist()
        window = batch_size * 8
        grouped = [sorted(order[at : at + window], key=lambda row: size_key(split.rows[row])) for at in range(0, len(order), window)]
        flat = [row for group in grouped for row in group]
        batches = [flat[at : at + batch_size] for at in range(0, len(flat), batch_size)]
        shuffled = torch.randperm(len(batches), generator=generator).tolist()
        yield batches[shuffled[within]]
        step += 1


def _rate(step: int, schedule: Schedule) -> float:
    warm = max(1, round(schedule.steps * schedule.warmup))
    if step < warm:
        return (step + 1) / warm
    return max(0.0, (schedule.steps - step) / max(1, schedule.steps - warm))


def _validation_loss(scorer: Scorer, validation: Split) -> float:
    return float(nn.functional.cross_entropy(scorer.encoded_logits(validation.rows), torch.tensor(validation.labels)))


def fit(
    scorer: Scorer,
    mixture: Mixture,
    groups: Sequence[tuple[list[nn.Parameter], float]],
    train: Split,
    validation: Split | None,
    schedule: Schedule,
    *,
    checkpoint: Path | None = None,
    resume: bool = False,
    on_step: OnStep | None = None,
) -> TrainReport:
    """Train `groups` (parameters, peak learning rate) of an unattached mixture in place; the best validated state is kept.

    Raises:
        Diverged: the loss became NaN or Inf.
    """
    trained = [(parameters, rate) for parameters, rate in groups if rate > 0]
    mixture.requires_grad_(False)
    for parameters, _ in trained:
        for parameter in parameters:
            parameter.requires_grad_(True)
    if not trained or schedule.steps == 0:
        return TrainReport(0, 0, None, [])
    optimizer = torch.optim.AdamW(
        [{"params": parameters, "lr": rate, "peak": rate} for parameters, rate in trained], weight_decay=schedule.weight_decay
    )
    progress, best = Progress(), snapshot(mixture)
    if resume and checkpoint is not None:
        found = load_checkpoint(checkpoint, fingerprint=schedule.fingerprint, optimizer=optimizer)
        if found is not None:
            progress, current, best = found
            mixture.load_state_dict(current)
    for split in (train, validation):
        scorer.answers.learn([] if split is None else split.rows)
    with attached(scorer.backbone.model, mixture):
        batches = _batches(train, batch_size=schedule.batch_size, seed=schedule.seed, start=progress.step)
        while progress.step < schedule.steps and not progress.finished:
            loss = _step(scorer, optimizer, trained, train, next(batches), _rate(progress.step, schedule))
            if not math.isfinite(loss):
                raise Diverged(f"{schedule.phase}: the loss became {loss} at step {progress.step}; lower the learning rate")
            progress.step += 1
            if on_step is not None:
                on_step(schedule.phase, progress.step, schedule.steps, loss)
            last = progress.step == schedule.steps
            if progress.step % schedule.eval_every == 0 or last:
                best = _validate(scorer, mixture, validation, schedule, progress, best, loss)
                if checkpoint is not None:
                    save_checkpoint(
                        checkpoint,
                        fingerprint=schedule.fingerprint,
                        progress=progress,
                        current=snapshot(mixture),
                        best=best,
                        optimizer=optimizer,
                    )
    mixture.load_state_dict(best)
    return TrainReport(progress.step, progress.best_step, None if math.isinf(progress.best_loss) else progress.best_loss, progress.history)


def snapshot(mixture: Mixture) -> dict[str, Tensor]:
    """A copy of the mixture's own tensors, without the Linears they are attached to."""
    return {name: value.detach().clone() for name, value in mixture.state_dict().items() if ".base." not in name}


def _step(
    scorer: Scorer,
    optimizer: torch.optim.Optimizer,
    trained: Sequence[tuple[list[nn.Parameter], float]],
    train: Split,
    rows: list[int],
    rate: float,
) -> float:
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * rate
    logits = scorer.logits([train.rows[row] for row in rows])
    loss = nn.functional.cross_entropy(logits, torch.tensor([train.labels[row] for row in rows]))
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    for parameters, _ in trained:
        nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    return float(loss.detach())


def _validate(
    scorer: Scorer,
    mixture: Mixture,
    validation: Split | None,
    schedule: Schedule,
    progress: Progress,
    best: dict[str, Tensor],
    loss: float,
) -> dict[str, Tensor]:
    """Record a validation; without held-back rows the last state is the best."""
    if validation is None:
        progress.history.append({"step": progress.step, "loss": loss})
        progress.best_step = progress.step
        return snapshot(mixture)
    held_back = _validation_loss(scorer, validation)
    progress.history.append({"step": progress.step, "loss": loss, "validation_loss": held_back})
    if held_back < progress.best_loss:
        progress.best_loss, progress.best_step, progress.stale = held_back, progress.step, 0
        return snapshot(mixture)
    progress.stale += 1
    progress.finished = progress.stale >= schedule.patience
    return best
