"""Neighbours by trial: helpers that answer the rows better than the bare backbone, and no
others.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pidep.adapters.mixture import Mixture, attached
from pidep.experts.folder import Expert, read_expert, write_expert
from pidep.lab.baselines import BASELINES
from pidep.similarity.estimators.h_score import h_score
from pidep.similarity.fisher import diagonal_fisher
from pidep.similarity.trial import neighbours_by_trial, rank_by_trial
from pidep.tasks.data import few_shot, load_data
from pidep.tasks.task import load_task
from pidep.training.own_expert import train_own_expert
from pidep.tuning.settings import TuneSettings
from pidep.tuning.tune import tune
from tests.lab.test_baselines import ROWS, TASK, make_cell

pytestmark = pytest.mark.slow  # experts are trained


def trained(cell: Any, *, turned: bool = False) -> Expert:
    """An expert of the rows, or of the same rows with every label reversed."""
    rows = replace(ROWS, labels=[1 - label for label in ROWS.labels]) if turned else ROWS
    torch.manual_seed(0)
    expert, _ = train_own_expert(
        cell.scorer, TASK, replace(cell.training, steps=40).at_rate(10.0), rows
    )
    return replace(expert, name="against" if turned else "with")


def test_helpers_are_ranked_by_what_they_answer_and_the_harmful_left_out(tiny: Any) -> None:
    cell = make_cell(tiny)
    helpers = {
        "with": trained(cell),
        "against": trained(cell, turned=True),
        "noise": cell.helpers[0],
    }
    every = rank_by_trial(cell.scorer, ROWS, helpers)
    assert (every[0].name, every[-1].name) == ("with", "against")
    assert all(0.0 < one.similarity <= 1.0 for one in every)
    chosen = neighbours_by_trial(cell.scorer, ROWS, helpers, top_k=3)
    assert chosen[0] == every[0]
    assert "against" not in [one.name for one in chosen]
    assert neighbours_by_trial(cell.scorer, ROWS, helpers, top_k=1) == chosen[:1]
    assert neighbours_by_trial(cell.scorer, ROWS, {"against": helpers["against"]}, top_k=3) == []
    assert neighbours_by_trial(cell.scorer, ROWS, {}, top_k=3) == []


def test_pi_by_trial_mixes_the_chosen_or_is_the_own_expert(tiny: Any) -> None:
    cell = make_cell(tiny)
    helped = BASELINES["pi_trial"](
        replace(cell, pool={"with": trained(cell), "against": trained(cell, turned=True)}), folds=2
    )
    assert [one["task"] for one in helped.details["helpers"]] == ["with"]
    assert helped.decision is not None
    alone = BASELINES["pi_trial"](
        replace(cell, pool={"against": trained(cell, turned=True)}), folds=2
    )
    assert alone.details["helpers"] == []
    assert torch.equal(alone.logits(ROWS.rows), BASELINES["own"](cell).logits(ROWS.rows))


def h_scores(tiny: Any, pool: Path, config: TuneSettings) -> list[float]:
    """The H-score of every expert of the pool on the shots."""
    rows = few_shot(load_data(load_task(config.task)).train, shots=8, seed=0)
    found = []
    for folder in pool.iterdir():
        with attached(tiny.model, Mixture.of([read_expert(folder)])):
            embedded = tiny.encode(rows.rows, max_length=read_expert(folder).max_length)
        found.append(h_score(embedded.numpy().astype(np.float64), np.array(rows.labels)))
    return found


def test_tune_by_trial_and_by_h_score(tiny: Any, task_file: Path, tmp_path: Path) -> None:
    cell = make_cell(tiny)
    for expert in (trained(cell), trained(cell, turned=True)):
        write_expert(
            expert,
            tmp_path / "pool" / expert.name,
            fisher=diagonal_fisher(tiny, expert, ROWS.rows, ROWS.labels),
        )
    config = TuneSettings(
        task=str(task_file),
        pool=tmp_path / "pool",
        shots=8,
        rank=2,
        sites=["encoder.layer.1.*"],
        mixture_steps=3,
        neighbours_by="trial",
    )
    result = tune(config, tmp_path / "run", backbone=tiny)
    # Nobody is left out: the guard judges the mixture.
    assert [near.name for near in result.neighbours] == ["with", "against"]
    assert set(result.metrics) == {"majority", "probe", "backbone", "own_expert", "uniform", "pi"}
    config = config.model_copy(update={"neighbours_by": "h-score", "top_k": 1})
    scored = tune(config, tmp_path / "scored", backbone=tiny)
    # The H-score asks whether labels are told apart, and reversed ones are told apart, too.
    assert [near.similarity for near in scored.neighbours] == [
        pytest.approx(max(h_scores(tiny, tmp_path / "pool", config)), rel=1e-5)
    ]
    nobody = tune(config.model_copy(update={"top_k": 0}), tmp_path / "alone", backbone=tiny)
    assert nobody.neighbours == []
