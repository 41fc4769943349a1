"""An own expert: its record, its checkpoints, and training on other rows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pidep.adapters.mixture import Mixture, find_sites
from pidep.errors import UsageError
from pidep.tasks.data import Split, data_digest
from pidep.tasks.task import Task
from pidep.training.evaluation import evaluate
from pidep.training.own_expert import own_expert_trainer, train_own_expert
from pidep.training.scorer import Scorer, predict_logits, scorer_for_expert, scorer_for_task
from pidep.training.settings import TrainingSettings

TEXTS = ["the film was good", "awful", "a very bad film", "great film", "good good", "bad film"]
ROWS = Split(TEXTS, [1, 0, 0, 1, 1, 0])
LABELS = {"negative": "negative", "positive": "positive"}
TASK = Task(name="film", labels=LABELS, data={"packaged": "x"}, max_length=12)


@pytest.fixture
def scorer(tiny: Any) -> Scorer:
    return scorer_for_task(tiny, TASK, max_length=12)


@pytest.fixture
def settings(tiny: Any) -> TrainingSettings:
    return TrainingSettings(
        kind="lora",
        sites=tuple(find_sites(tiny.model, ["encoder.layer.1.*"])),
        rank=2,
        scaling=2.0,
        steps=6,
        batch_size=2,
        warmup=0.0,
        weight_decay=0.0,
        eval_every=2,
        patience=3,
        seed=5,
        fingerprint="one",
    )


def test_it_says_what_it_was_trained_on(scorer: Scorer, settings: TrainingSettings) -> None:
    expert, report = train_own_expert(
        scorer, TASK, settings, ROWS, name="mine", provenance={"fisher": "true"}
    )
    assert (expert.name, expert.kind, expert.scaling, expert.rank) == ("mine", "lora", 2.0, 2)
    assert set(expert.sites) == set(settings.sites)
    assert (expert.labels, expert.max_length, expert.backbone_digest) == (
        ("negative", "positive"),
        12,
        scorer.backbone.digest,
    )
    digest = data_digest(ROWS)
    assert expert.provenance == {"train": digest, "rows": 6, "seed": 5, "fisher": "true"}
    assert (report.steps, report.best_step, report.validation_loss) == (6, 6, None)
    # Few steps: every one is a point of the learning curve.
    assert [entry["step"] for entry in report.history] == [1, 2, 3, 4, 5, 6]
    longer = replace(settings, steps=120, eval_every=50)
    _, report = train_own_expert(scorer, TASK, longer, ROWS)
    assert [entry["step"] for entry in report.history] == [*range(2, 121, 2)]


def test_training_lowers_the_loss_and_the_metric_is_that_of_the_expert(
    scorer: Scorer, settings: TrainingSettings
) -> None:
    longer = replace(settings, steps=40, eval_every=40).at_rate(10.0)
    expert, _ = train_own_expert(scorer, TASK, longer, ROWS)
    learned = Mixture.of([expert])
    logits = predict_logits(scorer, ROWS.rows, learned)
    losses = [
        float(torch.nn.functional.cross_entropy(one, torch.tensor(ROWS.labels)))
        for one in (predict_logits(scorer, ROWS.rows), logits)
    ]
    assert losses[1] < losses[0]
    right = (logits.argmax(1) == torch.tensor(ROWS.labels)).float().mean()
    found = evaluate(scorer, ROWS, "accuracy", learned)
    assert found.value == pytest.approx(float(right))
    assert found.interval is not None
    assert found.interval.low <= found.value <= found.interval.high
    again = scorer_for_expert(scorer.backbone, expert)
    assert torch.equal(predict_logits(again, ROWS.rows, learned), logits)


def test_the_kept_state_is_that_of_the_least_held_out_loss(
    scorer: Scorer, settings: TrainingSettings
) -> None:
    wrong = replace(ROWS, labels=[1 - label for label in ROWS.labels])
    expert, report = train_own_expert(scorer, TASK, settings.at_rate(10.0), ROWS, wrong)
    validated = {entry["step"]: entry.get("validation_loss") for entry in report.history}
    held_out = [loss for loss in validated.values() if loss is not None]
    assert [step for step, loss in validated.items() if loss is not None] == [
        step for step in validated if step % settings.eval_every == 0
    ]
    # With swapped labels, held-out rows get worse at every step, so training stops early.
    assert report.best_step == 2
    assert report.validation_loss == min(held_out)
    first = train_own_expert(
        scorer, TASK, replace(settings.at_rate(10.0), patience=1), ROWS, wrong
    )[0]
    assert first.digest == expert.digest


def test_a_checkpoint_of_other_settings_is_refused(
    scorer: Scorer, settings: TrainingSettings, tmp_path: Path
) -> None:
    place = tmp_path / "checkpoint"
    expert, _ = train_own_expert(scorer, TASK, settings, ROWS, checkpoint=place)
    steps: list[int] = []
    resumed, _ = train_own_expert(
        scorer,
        TASK,
        settings,
        ROWS,
        checkpoint=place,
        resume=True,
        on_step=lambda phase, step, total, loss: steps.append(step),
    )
    assert (steps, resumed.digest) == ([], expert.digest)
    other = replace(settings, fingerprint="two")
    with pytest.raises(UsageError, match="another task, data or setting"):
        train_own_expert(scorer, TASK, other, ROWS, checkpoint=place, resume=True)


def test_the_trainer_learns_other_rows_at_another_rate(
    scorer: Scorer, settings: TrainingSettings
) -> None:
    train_own = own_expert_trainer(scorer, TASK, settings)
    rows = ROWS.take(range(4))
    expected, _ = train_own_expert(scorer, TASK, settings.at_rate(4.0), rows)
    assert train_own(rows, 4.0).digest == expected.digest
    assert train_own(rows, 1.0).digest != expected.digest
