"""Neighbours by trial: helpers that answer the rows better than the bare backbone, and no
others.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pidep.experts.folder import Expert, write_expert
from pidep.lab.baselines import BASELINES
from pidep.similarity.fisher import diagonal_fisher
from pidep.similarity.trial import neighbours_by_trial, rank_by_trial
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


def test_tune_by_trial(tiny: Any, task_file: Path, tmp_path: Path) -> None:
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
    assert [near.name for near in result.neighbours] == ["with"]
    assert set(result.metrics) == {"majority", "probe", "backbone", "own_expert", "uniform", "pi"}
    nobody = tune(config.model_copy(update={"top_k": 0}), tmp_path / "alone", backbone=tiny)
    assert nobody.neighbours == []
