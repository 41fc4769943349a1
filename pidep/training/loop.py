"""The training loop: AdamW with warm-up and linear decay, early stopping, checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from pidep.adapters.mixture import Mixture, attached
from pidep.adapters.places import device_of
from pidep.errors import PidepError
from pidep.tasks.data import Split
from pidep.training.batches import shuffled_batches
from pidep.training.checkpoint import Progress, load_checkpoint, save_checkpoint
from pidep.training.scorer import Scorer

__all__ = [
    "Diverged",
    "OnStep",
    "ParameterGroups",
    "Schedule",
    "TrainReport",
    "fit",
    "snapshot",
    "training_step",
]

OnStep = Callable[[str, int, int, float], None]
"""Called with phase, step, number of steps and loss."""
ParameterGroups = Sequence[tuple[list[nn.Parameter], float]]
"""Parameters and their peak learning rate."""
_MAX_GRADIENT_NORM = 1.0
CURVE_POINTS = 50
"""About as many losses are kept as a learning curve shows: all of them in a run of few steps."""


class Diverged(PidepError):
    """The loss became NaN or Inf."""


@dataclass(frozen=True)
class Schedule:
    """Steps, batches and early stopping of one phase of training."""

    phase: str
    steps: int
    batch_size: int
    warmup: float
    """Share of the steps in which the learning rate rises."""
    weight_decay: float
    eval_every: int
    """Steps between validations, and between checkpoints."""
    patience: int
    """Validations without improvement before training stops."""
    seed: int
    fingerprint: str
    """A checkpoint is resumed only under the fingerprint that it was written with."""


@dataclass(frozen=True)
class TrainReport:
    """How a phase went."""

    steps: int
    best_step: int
    validation_loss: float | None
    """The lowest; None without held-back rows."""
    history: list[dict[str, float]]
    """An entry for each validation and for about `CURVE_POINTS` steps: `step`, `loss` and, where
    held-back rows were validated, `validation_loss`.
    """


def _rate_factor(step: int, schedule: Schedule) -> float:
    """Share of the peak learning rate at a step: linear warm-up, then linear decay to zero."""
    # At least one step of warm-up: the first step of AdamW is its least certain.
    warm = max(1, round(schedule.steps * schedule.warmup))
    if step < warm:
        return (step + 1) / warm
    return max(0.0, (schedule.steps - step) / max(1, schedule.steps - warm))


def _validation_loss(scorer: Scorer, validation: Split) -> float:
    logits = scorer.encoded_logits(validation.rows)
    return float(nn.functional.cross_entropy(logits, torch.tensor(validation.labels)))


def fit(
    scorer: Scorer,
    mixture: Mixture,
    groups: ParameterGroups,
    train: Split,
    validation: Split | None,
    schedule: Schedule,
    *,
    checkpoint: Path | None = None,
    resume: bool = False,
    on_step: OnStep | None = None,
) -> TrainReport:
    """Train parameters of an unattached mixture in place; the state of least held-out loss is kept.

    Raises:
        Diverged: the loss became NaN or Inf.
        UsageError: the checkpoint is damaged, or has another fingerprint.
    """
    trained = _trainable(mixture, groups)
    if not trained or schedule.steps == 0:
        return TrainReport(0, 0, None, [])
    # Before the optimizer: its moments are made, and restored, where the parameters are.
    mixture.to(device_of(scorer.backbone.model))
    optimizer = torch.optim.AdamW(
        [{"params": parameters, "lr": rate, "peak": rate} for parameters, rate in trained],
        weight_decay=schedule.weight_decay,
    )
    progress, best = Progress(), snapshot(mixture)
    if resume and checkpoint is not None:
        found = load_checkpoint(checkpoint, fingerprint=schedule.fingerprint, optimizer=optimizer)
        if found is not None:
            progress, current, best = found
            mixture.load_state_dict(current)
    # Candidates are embedded by the bare backbone, so before the mixture is attached.
    for split in (train, validation):
        scorer.answers.learn([] if split is None else split.rows)
    with attached(scorer.backbone.model, mixture):
        batches = shuffled_batches(
            train, batch_size=schedule.batch_size, seed=schedule.seed, start=progress.step
        )
        while progress.step < schedule.steps and not progress.finished:
            rate = _rate_factor(progress.step, schedule)
            loss = training_step(scorer, optimizer, trained, train, next(batches), rate_factor=rate)
            _require_finite(loss, schedule, progress)
            progress.step += 1
            if on_step is not None:
                on_step(schedule.phase, progress.step, schedule.steps, loss)
            if _record(loss, schedule, progress):
                best = _validate(scorer, mixture, validation, schedule, progress, best)
                if checkpoint is not None:
                    save_checkpoint(
                        checkpoint,
                        fingerprint=schedule.fingerprint,
                        progress=progress,
                        current=snapshot(mixture),
                        best=best,
                        optimizer=optimizer,
                    )
    # Early stopping goes on for `patience` validations past the best one.
    mixture.load_state_dict(best)
    return _report(progress)


def _report(progress: Progress) -> TrainReport:
    lowest = None if math.isinf(progress.best_loss) else progress.best_loss
    return TrainReport(progress.step, progress.best_step, lowest, progress.history)


def _trainable(mixture: Mixture, groups: ParameterGroups) -> list[tuple[list[nn.Parameter], float]]:
    """The groups with a learning rate; only their parameters have gradients afterwards."""
    trained = [(parameters, rate) for parameters, rate in groups if rate > 0]
    # AdamW decays whatever has a gradient, so parameters of rate 0 must have none.
    mixture.requires_grad_(False)
    for parameters, _ in trained:
        for parameter in parameters:
            parameter.requires_grad_(True)
    return trained


def _require_finite(loss: float, schedule: Schedule, progress: Progress) -> None:
    # AdamW would spread a NaN over all parameters in the next step.
    if not math.isfinite(loss):
        raise Diverged(
            f"{schedule.phase}: the loss became {loss} at step {progress.step}; "
            "lower the learning rate"
        )


def _record(loss: float, schedule: Schedule, progress: Progress) -> bool:
    """Keep the loss where the learning curve has a point; whether the state is validated now."""
    # The last state is validated even where `eval_every` does not divide the steps.
    validated = progress.step == schedule.steps or progress.step % schedule.eval_every == 0
    if validated or progress.step % max(1, schedule.steps // CURVE_POINTS) == 0:
        progress.history.append({"step": progress.step, "loss": loss})
    return validated


def snapshot(mixture: Mixture) -> dict[str, Tensor]:
    """A copy of the mixture's own tensors, without the backbone's modules it is attached to."""
    return {
        name: value.detach().clone()
        for name, value in mixture.state_dict().items()
        # An attached site holds the backbone's module as `base`. It is frozen and far larger.
        if ".base." not in name
    }


def training_step(
    scorer: Scorer,
    optimizer: torch.optim.Optimizer,
    trained: ParameterGroups,
    train: Split,
    rows: list[int],
    *,
    rate_factor: float,
) -> float:
    """One step of AdamW on some rows of a split; the loss before the step.

    Every group of the optimizer needs `peak`, its peak learning rate.
    """
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * rate_factor
    logits = scorer.logits([train.rows[row] for row in rows])
    labels = torch.tensor([train.labels[row] for row in rows], device=logits.device)
    loss = nn.functional.cross_entropy(logits, labels)
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    # Each group by itself, so that a large gradient of α does not shrink the experts' steps.
    for parameters, _ in trained:
        nn.utils.clip_grad_norm_(parameters, _MAX_GRADIENT_NORM)
    optimizer.step()
    return float(loss.detach())


def _validate(
    scorer: Scorer,
    mixture: Mixture,
    validation: Split | None,
    schedule: Schedule,
    progress: Progress,
    best: dict[str, Tensor],
) -> dict[str, Tensor]:
    """The best state so far; without held-back rows that is the current one. Updates `progress`."""
    if validation is None:
        progress.best_step = progress.step
        return snapshot(mixture)
    held_out_loss = _validation_loss(scorer, validation)
    progress.history[-1]["validation_loss"] = held_out_loss
    if held_out_loss < progress.best_loss:
        progress.best_loss, progress.best_step, progress.stale = held_out_loss, progress.step, 0
        return snapshot(mixture)
    progress.stale += 1
    progress.finished = progress.stale >= schedule.patience
    return best
