"""Which estimate chooses the helpers, and that the choice is written down."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pidep.errors import TaskError
from pidep.experts.folder import write_expert
from pidep.similarity.choose import chosen_by
from pidep.similarity.estimate_names import ESTIMATES, NO_LABELS, how_text, recorded_by
from pidep.similarity.fisher import diagonal_fisher
from pidep.similarity.measures import similarity
from pidep.similarity.pool import Pool
from pidep.tasks.task import Task, load_task
from pidep.tuning.run_folder import read_run
from pidep.tuning.settings import TuneSettings
from pidep.tuning.tune import tune
from tests.similarity.samples import random_expert
from tests.similarity.test_trial import ROWS

LABELLED, CHOOSING = load_task("sentiment/movie"), load_task("vl/caption")


def test_auto_is_trial_which_every_task_allows() -> None:
    assert chosen_by("auto", LABELLED, embeds=True) == "trial"
    assert chosen_by("auto", LABELLED, embeds=False) == "trial"
    assert chosen_by("auto", CHOOSING, embeds=True) == "trial"


@pytest.mark.parametrize("name", ["fisher", "trial"])
def test_a_name_is_taken_at_its_word(name: Any) -> None:
    assert chosen_by(name, LABELLED, embeds=True) == name
    assert chosen_by(name, CHOOSING, embeds=False) == name


@pytest.mark.parametrize(
    ("asked", "embeds", "why"),
    [(CHOOSING, True, "the task has none"), (LABELLED, False, "the backbone embeds nothing")],
)
def test_the_h_score_is_refused_where_it_cannot_be(asked: Task, embeds: bool, why: str) -> None:
    with pytest.raises(TaskError, match=f"task '.*': the H-score .* {why}; use `neighbours_by=tri"):
        chosen_by("h-score", asked, embeds=embeds)


def test_old_runs_say_what_chose_their_neighbours() -> None:
    assert recorded_by({}, {}) == "fisher"
    assert recorded_by({}, {"neighbours_by": "trial"}) == "trial"
    assert recorded_by({"neighbours_by": "h-score"}, {"neighbours_by": "auto"}) == "h-score"
    assert recorded_by({}, {"policy": "zero-shot"}) == NO_LABELS
    assert NO_LABELS in ESTIMATES
    assert (how_text("h-score"), how_text(NO_LABELS)) == ("by h-score", "without labels")


@pytest.mark.slow  # experts are trained
@pytest.mark.parametrize(("asked", "used"), [("h-score", "h-score"), ("fisher", "fisher")])
def test_a_run_records_what_chose_and_starts_alpha_from_the_similarity(
    asked: Any, used: str, tiny: Any, task_file: Path, tmp_path: Path
) -> None:
    for seed in (1, 2):
        expert = random_expert(tiny, "lora", seed=seed)
        write_expert(
            expert,
            tmp_path / "pool" / f"e{seed}",
            fisher=diagonal_fisher(tiny, expert, ROWS.rows, ROWS.labels),
        )
    config = TuneSettings(
        task=str(task_file),
        pool=tmp_path / "pool",
        shots=4,
        rank=2,
        steps=4,
        sites=sorted(random_expert(tiny, "lora", seed=1).sites),
        neighbours_by=asked,
        policy="uniform",
        alpha_start="similarity",
    )
    result = tune(config, tmp_path / "run", backbone=tiny)
    assert result.neighbours_by == used
    assert json.loads((tmp_path / "run" / "result.json").read_text())["neighbours_by"] == used
    run = read_run(tmp_path / "run")
    assert run.neighbours_by == used
    # Whatever chose them: an H-score is no share of anything.
    pool, own = Pool(tmp_path / "pool"), Pool(tmp_path / "run").embedding("own")
    near = [similarity(own, pool.embedding(name)) for name in run.neighbours]
    expected = [value / (1 + sum(near)) for value in (1.0, *near)]
    assert run.alpha.mean == pytest.approx(expected, rel=1e-4)
    alone = tune(config.model_copy(update={"top_k": 0}), tmp_path / "alone", backbone=tiny)
    assert alone.neighbours_by is None
