"""Learning rates and schedules that follow from the settings; no backbone is needed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pidep.adapters.kinds import adapter_kind
from pidep.tasks.data import Split
from pidep.training.batches import shuffled_batches
from pidep.training.settings import TrainingSettings, few_shot_factor
from pidep.tuning.settings import MAX_SEED

SETTINGS = TrainingSettings(
    kind="lora",
    sites=("a",),
    rank=2,
    scaling=2.0,
    steps=10,
    batch_size=4,
    warmup=0.1,
    weight_decay=0.01,
    eval_every=25,
    patience=2,
    seed=7,
    fingerprint="abc",
)


@pytest.mark.parametrize("kind", ["lora", "bitfit", "prompt"])
def test_the_usual_rate_is_that_of_the_kind(kind: str) -> None:
    settings = replace(SETTINGS, kind=kind)
    usual = adapter_kind(kind).learning_rate
    assert settings.peak_learning_rate == usual
    assert settings.at_rate(0.5).at_rate(4.0).peak_learning_rate == 2 * usual


def test_a_given_rate_replaces_the_usual_one() -> None:
    settings = replace(SETTINGS, learning_rate=0.3)
    assert settings.peak_learning_rate == 0.3
    assert replace(settings, kind="bitfit").at_rate(4.0).peak_learning_rate == 4 * 0.3


def test_fewer_rows_halve_the_rate() -> None:
    assert [few_shot_factor(rows) for rows in (1, 127, 128, 1000)] == [0.5, 0.5, 1.0, 1.0]


def test_the_schedule_validates_within_its_steps_and_names_its_phase() -> None:
    schedule = SETTINGS.schedule("film: own expert")
    assert (schedule.steps, schedule.eval_every, schedule.seed) == (10, 10, 7)
    assert schedule.fingerprint == "film: own expert:abc"
    assert SETTINGS.schedule("mix", steps=40).eval_every == 25
    assert SETTINGS.schedule("mix", steps=0).eval_every == 1  # no steps, no training


def test_batches_are_the_same_from_any_step() -> None:
    rows = Split([f"text {'x' * (number % 5)}" for number in range(11)], [0] * 11)
    whole = shuffled_batches(rows, batch_size=4, seed=3)
    batches = [next(whole) for _ in range(9)]
    later = shuffled_batches(rows, batch_size=4, seed=3, start=5)
    assert [next(later) for _ in range(4)] == batches[5:]
    for epoch in range(3):
        seen = [row for batch in batches[3 * epoch : 3 * epoch + 3] for row in batch]
        assert sorted(seen) == list(range(11))
    assert batches[:3] != batches[3:6]
    assert next(shuffled_batches(rows, batch_size=4, seed=4)) != batches[0]


def test_one_batch_holds_all_rows_of_a_small_split() -> None:
    rows = Split(["a", "bb"], [0, 1])
    assert sorted(next(shuffled_batches(rows, batch_size=16, seed=0))) == [0, 1]


def test_the_largest_seed_draws_batches() -> None:
    split = Split(["a", "b", "c"], [0, 1, 0])
    drawn = [
        next(shuffled_batches(split, batch_size=2, seed=MAX_SEED, start=start))
        for start in (0, 1_000_000)
    ]
    assert all(0 < len(rows) <= 2 for rows in drawn)
