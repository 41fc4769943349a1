"""`pidep graph --learn` on a pool of tiny experts, and `pidep tune` by what it learned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pidep.errors import UsageError
from pidep.experts.folder import read_expert, write_expert
from pidep.similarity.learned import digests_of, fresh_learned, read_learned
from pidep.similarity.settings import GraphSettings
from pidep.tasks.data import Split, few_shot, few_shot_beside
from pidep.tuning.learn_transfer import learn_transfer, planned
from pidep.tuning.run_folder import read_run
from pidep.tuning.settings import TuneSettings
from pidep.tuning.tune import tune

NAMES = ("a", "b", "c", "d", "e")


def config(task_file: Path, pool: Path, name: str, **more: Any) -> TuneSettings:
    return TuneSettings(
        task=str(task_file),
        name=name,
        pool=pool,
        rank=2,
        steps=6,
        batch_size=8,
        sites=("encoder.layer.1.*",),
        mixture_steps=3,
        **more,
    )


@pytest.fixture
def pool(tiny: Any, task_file: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "learn"
    for seed, name in enumerate(NAMES):
        asked = config(task_file, folder / "pool", name, top_k=0, seed=seed, train_limit=40)
        tune(asked, folder / name, backbone=tiny)
    return folder / "pool"


def test_the_budget_is_shared_among_targets() -> None:
    found = planned(NAMES, NAMES, pairs=12, seed=0)
    assert sorted(map(len, found.values())) == [2, 2, 2, 3, 3]
    assert all(name not in helpers for name, helpers in found.items())
    assert planned(NAMES, NAMES, pairs=12, seed=0) == found
    assert planned(NAMES, NAMES, pairs=12, seed=1) != found
    # Two helpers each at least, so a small budget has fewer targets.
    few = planned([str(number) for number in range(50)], list(NAMES), pairs=20, seed=0)
    assert [len(helpers) for helpers in few.values()] == [2] * 10
    # No more than there are.
    whole = planned(NAMES, NAMES, pairs=1000, seed=0)
    assert {len(helpers) for helpers in whole.values()} == {4}


def test_rows_that_measure_are_no_shots() -> None:
    split = Split([f"row {number}" for number in range(30)], [number % 3 for number in range(30)])
    few, held = few_shot_beside(split, shots=4, held=10, seed=0)
    assert few == few_shot(split, shots=4, seed=0)
    assert len(held.rows) == 10
    assert not {*few.rows} & {*held.rows}
    small = Split(["a", "b", "c", "d", "e"], [0, 0, 0, 1, 1])
    few, held = few_shot_beside(small, shots=4, held=10, seed=0)
    assert sorted(few.labels) == [0, 1]
    assert {*few.rows, *held.rows} == {*small.rows}


@pytest.mark.slow  # experts are trained
def test_a_pool_learns_and_a_run_is_predicted_by_it(
    pool: Path, tiny: Any, task_file: Path, tmp_path: Path
) -> None:
    settings = GraphSettings(pool=pool, learn=True, learn_pairs=20, learn_shots=3)
    learned = learn_transfer(settings, backbone=tiny)
    assert read_learned(pool) == learned
    assert learned.experts == digests_of(pool)
    assert {(pair.target, pair.helper) for pair in learned.pairs} == {
        (one, other) for one in NAMES for other in NAMES if one != other
    }
    assert learn_transfer(settings, backbone=tiny) == learned  # seeded
    asked = config(task_file, pool, "target", shots=4, neighbours_by="ranker", policy="uniform")
    result = tune(asked, tmp_path / "run", backbone=tiny)
    record = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (record["neighbours_by"], len(record["predicted"])) in {
        ("ranker", len(result.neighbours)),
        (None, 0),
    }
    for near in result.neighbours:
        said = result.predicted[near.name]
        assert near.similarity == said.gain > 0
        assert said.half_width == learned.half_width
    assert read_run(tmp_path / "run").predicted == result.predicted
    # A task of the pool is ranked by what never saw it.
    known = tune(asked.model_copy(update={"name": "a"}), tmp_path / "known", backbone=tiny)
    assert all(said.level == learned.without("a").level for said in known.predicted.values())


@pytest.mark.slow  # experts are trained
def test_what_cannot_learn_or_is_stale_is_refused_before_training(
    pool: Path, tiny: Any, task_file: Path, tmp_path: Path
) -> None:
    asked = config(task_file, tmp_path / "pool", "target", shots=4, neighbours_by="ranker")
    for name in NAMES[:3]:
        expert = read_expert(pool / name)
        write_expert(expert, tmp_path / "pool" / name, fisher=None)
    with pytest.raises(UsageError, match="has learned nothing about transfer"):
        tune(asked, tmp_path / "run", backbone=tiny)
    assert not (tmp_path / "run" / "own").exists()
    with pytest.raises(UsageError, match=r"0 tasks with labels and a task.json, and learn"):
        learn_transfer(GraphSettings(pool=tmp_path / "pool", learn=True), backbone=tiny)
    with pytest.raises(UsageError, match="has learned nothing"):
        fresh_learned(tmp_path / "pool")
