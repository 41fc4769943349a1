"""The figures of the suite benchmark, on made-up cells."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import bench_suite, record
from benchmarks.bench_suite import (
    COMMAND_LINE,
    GRID,
    MODALITY,
    ceiling,
    claims,
    crossing,
    modalities,
    prediction,
)
from benchmarks.grid_command import read_cells
from pidep.errors import PidepError
from pidep.gallery.suite.facts import FACTS


def cell(
    task: str,
    *,
    shots: int | None = 16,
    seed: int = 0,
    own: float = 0.5,
    pi: float = 0.6,
    tuned: float = 0.52,
    helpers: tuple[str, ...] = (),
) -> dict[str, Any]:
    scores = {"backbone": 0.4, "own": own, "own_tuned": tuned, "uniform": 0.55, "pi": pi}
    return {
        "kind": "lora",
        "task": task,
        "shots": shots,
        "seed": seed,
        "methods": {method: {"score": score} for method, score in scores.items()},
        "helpers": [{"task": helper, "similarity": 0.9} for helper in helpers],
    }


def whole(pi: float = 0.6) -> list[dict[str, Any]]:
    columns = [(16, seed) for seed in GRID.seeds] + [(None, 0)]
    return [
        cell(task, shots=shots, seed=seed, pi=pi) for task in MODALITY for shots, seed in columns
    ]


def test_the_grid_is_the_suite() -> None:
    assert set(GRID.tasks) == set(FACTS)
    assert len(MODALITY) == 16
    assert (GRID.shots, GRID.seeds, GRID.full, GRID.backbone) == (
        (16,),
        (0, 1, 2),
        True,
        "pidep-mini",
    )


def test_claims_are_averages_of_all_tasks() -> None:
    found = claims(whole(pi=0.53))
    assert [(claim["measured"], claim["met"]) for claim in found] == [
        (3.0, True),
        (1.0, True),
        (3.0, True),
    ]
    assert [claim["met"] for claim in claims(whole(pi=0.529))] == [False, True, True]
    assert [claim["met"] for claim in claims(whole(pi=0.51))] == [False, False, True]
    assert [claim["met"] for claim in claims(whole(pi=0.4999))] == [False, False, False]
    found = claims(whole(), missing=["lora, digits, full data, seed 0"])
    assert [(claim["measured"], claim["met"]) for claim in found] == [
        (10.0, True),
        (8.0, True),
        ("not measured yet", False),
    ]
    assert [claim["met"] for claim in claims([])] == [False] * 3


def test_modalities_name_the_tasks_that_lose_and_the_spread_of_their_means() -> None:
    cells = [cell("digits", seed=seed, pi=pi) for seed, pi in enumerate((0.4, 0.45, 0.5))]
    cells += [cell("family", seed=seed, pi=pi) for seed, pi in enumerate((0.6, 0.65, 0.7))]
    by = {(row["shots"], row["modality"]): row for row in modalities([*cells, cell("nyt", pi=0.9)])}
    assert set(by) == {(16, "vision"), (16, "language"), (16, "all")}
    vision = by[16, "vision"]
    assert vision["scores"]["pi"] == {"mean": pytest.approx(0.55), "sd": pytest.approx(0.05)}
    assert vision["pi"]["tasks"] == {"digits": pytest.approx(-0.05), "family": pytest.approx(0.15)}
    assert vision["pi"]["losing"] == {"digits": pytest.approx(-0.05)}
    assert vision["pi"]["minus_own"] == pytest.approx(0.05)
    assert by[16, "language"]["scores"]["pi"] == {"mean": 0.9, "sd": None}


def test_helpers_of_other_modalities_are_counted_with_their_gain() -> None:
    cells = [
        cell("digits", helpers=("family", "nyt", "fits"), pi=0.8),
        cell("family", helpers=("digits", "filled", "turned"), pi=0.4),
    ]
    pairs = [
        {
            "task": "digits",
            "own": 0.5,
            "with": {"family": 0.4, "nyt": 0.7, "fits": 0.4, "tweets": 0.9},
            "nearest": ["family", "nyt", "fits"],
        }
    ]
    found = crossing(cells, pairs)
    few = found["16 shots"]
    assert few["share_of_other_modality"] == pytest.approx(2 / 6)
    assert {(one["target"], one["helper"]): one["count"] for one in few["helpers"]} == {
        ("vision", "vision"): 4,
        ("vision", "language"): 1,
        ("vision", "vision-language"): 1,
    }
    assert few["pi_minus_own"] == {
        "cells_with": 1,
        "with": pytest.approx(0.3),
        "cells_without": 1,
        "without": pytest.approx(-0.1),
    }
    assert found["full data"]["share_of_other_modality"] is None
    assert found["pairs"]["other_modality"] == {
        "pairs": 2,
        "mean_gain": pytest.approx(0.05),
        "helped": 1,
    }
    assert found["pairs"]["same_modality"] == {
        "pairs": 1,
        "mean_gain": pytest.approx(-0.1),
        "helped": 0,
    }


def test_the_ceiling_is_the_best_helper_chosen_on_the_test_rows() -> None:
    pairs = [{"own": 0.5, "with": {"a": 0.6, "b": 0.4}}, {"own": 0.5, "with": {"a": 0.3, "b": 0.4}}]
    assert ceiling(pairs) == {"best_helper": pytest.approx(0.0), "or_none": pytest.approx(0.05)}
    assert ceiling([]) == {"best_helper": None, "or_none": None}


def test_predictions_are_compared_with_the_gain_of_helpers() -> None:
    tasks = list(MODALITY)
    assert prediction([]) == {}
    pairs = []
    for target in tasks:
        gain = {
            helper: 0.5 + 0.01 * number for number, helper in enumerate(tasks) if helper != target
        }
        turned = {helper: -value for helper, value in gain.items()}
        pairs.append(
            {
                "task": target,
                "own": 0.5,
                "with": gain,
                "nearest": [],
                "fisher": turned,
                "trial": gain,
            }
        )
    found = prediction(pairs)
    assert found["trial"]["spearman_by_target"]["value"] == pytest.approx(1.0)
    assert found["trial"]["regret"]["value"] == pytest.approx(0.0)
    assert found["fisher"]["spearman_by_target"]["value"] == pytest.approx(-1.0)
    assert found["random"]["spearman_by_target"]["value"] == pytest.approx(0.0)
    assert found["fisher"]["regret"]["value"] > found["random"]["regret"]["value"] > 0.05


def test_cells_are_found_again_and_what_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = whole()[:-1]
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "suite.json").write_text(
        json.dumps({"raw": {"cells": cells, "pairs": [{"task": "digits"}]}})
    )
    monkeypatch.setattr(record, "RESULTS", tmp_path / "results")
    assert COMMAND_LINE.restore(tmp_path / "out") == 0
    found, missing = read_cells((GRID,), list(MODALITY), tmp_path / "out")
    assert len(found) == 63
    assert missing == ["lora, find, full data, seed 0"]
    assert json.loads((tmp_path / "out" / "pairs" / "digits.json").read_text()) == {
        "task": "digits"
    }

    (tmp_path / "out" / "cells" / "lora" / "digits" / "16" / "0.json").write_text(
        json.dumps({**cells[0], "methods": {"own": {"score": 1.0}}})
    )
    assert COMMAND_LINE.restore(tmp_path / "out") == 0, "what is there is left alone"
    assert (
        read_cells((GRID,), list(MODALITY), tmp_path / "out")[1][0]
        == "lora, digits, 16 shots, seed 0"
    )


def test_pairs_need_their_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pidep.lab import compare_grid

    class NoGrid:
        def __init__(self, *_: object) -> None:
            self.cells = compare_grid.cells_of(GRID, list(MODALITY))

    monkeypatch.setattr(compare_grid, "Grid", NoGrid)
    monkeypatch.setattr("pidep.backbones.load.load_backbone", lambda _: None)
    with pytest.raises(
        PidepError, match=r"lora/digits/16/0\.json: this cell is not measured yet; run --part first"
    ):
        bench_suite.measure_pairs(tmp_path, print)
