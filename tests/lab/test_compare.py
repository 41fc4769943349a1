"""Grids on a tiny backbone: resumed, shared between processes, and refused; and the summary of
cells.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pidep.adapters.kinds import KINDS
from pidep.errors import UsageError
from pidep.experts.folder import read_expert, write_expert
from pidep.lab.compare_grid import Grid, Key, Part, cells_of, methods_of
from pidep.lab.settings import METHODS, CompareSettings
from pidep.settings import checked
from pidep.similarity.pool import read_pool
from tests.lab.small_grid import TINY, run

pytestmark = pytest.mark.slow  # whole comparisons and pages


def test_the_rate_grows_with_the_rows(tiny, tasks: list[str]) -> None:  # type: ignore[no-untyped-def]
    grid = Grid(
        checked(CompareSettings, {**TINY, "tasks": tasks, "full": True}, where="compare"), tiny
    )
    few, full = Key("lora", "one", 2, 0), Key("lora", "one", None, 0)
    assert [
        grid.training(few, num_rows=rows).learning_rate_factor for rows in (4, 127, 128, 256)
    ] == [0.5, 0.5, 1.0, 1.0]
    assert grid.training(full, num_rows=4).learning_rate_factor == 1.0
    grid = Grid(
        checked(
            CompareSettings, {**TINY, "tasks": tasks, "learning_rate_factor": 0.25}, where="compare"
        ),
        tiny,
    )
    assert {grid.training(few, num_rows=rows).learning_rate_factor for rows in (4, 256)} == {0.25}


def test_one_target_is_helped_by_the_others_alone(  # type: ignore[no-untyped-def]
    tiny, tasks: list[str], tmp_path: Path
) -> None:
    whole = run(tiny, tasks, tmp_path / "whole", seeds=[0])
    part = run(tiny, tasks, tmp_path / "part", seeds=[0], targets=["two"])
    assert [cell.task for cell in part.cells] == ["two"]
    # It helps nobody, so no helper is trained of it.
    assert sorted(path.name for path in (tmp_path / "part" / "pool" / "lora").iterdir()) == [
        "one",
        "three",
    ]
    scores = {cell.task: cell.methods["uniform"].score for cell in whole.cells}
    assert part.cells[0].methods["uniform"].score == scores["two"]
    # Another target goes on in the same folder.
    both = run(tiny, tasks, tmp_path / "part", seeds=[0], targets=[tasks[1], tasks[0]])
    assert [cell.task for cell in both.cells] == ["one", "two"]


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (["tow"], r"`targets` tow: expected one of the tasks, .*\(did you mean 'two'\?\)"),
        (["two", "two"], r"`targets`: expected each value once, 'two' is there twice"),
    ],
)
def test_a_target_must_be_one_of_the_tasks(  # type: ignore[no-untyped-def]
    tiny, tasks: list[str], tmp_path: Path, targets: list[str], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        run(tiny, tasks, tmp_path / "run", targets=targets)
    assert not (tmp_path / "run").exists()


def test_a_kind_without_a_method_is_refused(tiny, tasks: list[str]) -> None:  # type: ignore[no-untyped-def]
    for kind, method in (("lora", "uniform_outputs"), ("adapter", "lorahub")):
        with pytest.raises(
            UsageError,
            match=f"none of the methods {method} is for experts of kind '{kind}'; add one",
        ):
            Grid(
                checked(
                    CompareSettings,
                    {**TINY, "tasks": tasks, "kinds": [kind], "methods": [method]},
                    where="compare",
                ),
                tiny,
            )


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_every_method_in_every_cell(tiny, tasks: list[str], tmp_path: Path) -> None:
    few = {"lorahub_budget": 4, "finetune_steps": 1, "interpolation": {"folds": 2}}
    result = run(
        tiny, tasks, tmp_path, seeds=[0], full=True, full_seeds=[0], methods=METHODS, **few
    )
    assert result.missing == 0
    assert len(result.cells) == 6
    for cell in result.cells:
        assert tuple(cell.methods) == tuple(
            method for method in METHODS if method != "uniform_outputs"
        )
        scores = {method: found.score for method, found in cell.methods.items()}
        assert scores["peft_cat"] == scores["uniform"]
        assert set(cell.helpers) == {"one", "two", "three"} - {cell.task}
        assert (cell.kind, cell.metric, cell.test_rows) == ("lora", "accuracy", 6)
        pi = cell.methods["pi"]
        assert pi.decision is not None
        assert pi.decision["chosen"] in ("mixture", "own_expert", "uniform")
        assert pi.settings["folds"] == 2
        assert cell.record["methods"]["pi"]["cpu_seconds"] == pi.cpu_seconds
    small = next(cell for cell in result.cells if cell.shots == 2)
    full = next(cell for cell in result.cells if cell.shots is None and cell.task == small.task)
    assert (small.train_rows, small.validation_rows, small.record["own"]["steps"]) == (4, 0, 2)
    assert full.own_digest == read_expert(tmp_path / "pool" / "lora" / full.task).digest
    assert full.own_digest != small.own_digest
    assert json.loads((tmp_path / "summary.json").read_text()) == result.summary.to_json()


def test_finished_cells_are_not_measured_again(
    tiny,
    tasks: list[str],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    first = run(tiny, tasks, tmp_path)
    before = contents(tmp_path)
    said: list[str] = []
    second = run(tiny, tasks, tmp_path, on_cell=lambda done, total, what: said.append(what))
    assert said == []
    assert contents(tmp_path) == before
    assert second.cells == first.cells
    (tmp_path / Key("lora", "two", 2, 1).path).unlink()
    caplog.set_level("INFO", logger="pidep")
    run(tiny, tasks, tmp_path, on_cell=lambda done, total, what: said.append(what))
    assert said[-1] == "lora, two, 2 shots, seed 1"
    assert f"compare: 1 of 1 cells measured; {said[-1]}" in caplog.messages
    assert all("two" in what for what in said)
    assert [cell.methods["own"].score for cell in run(tiny, tasks, tmp_path).cells] == [
        cell.methods["own"].score for cell in first.cells
    ]


def test_one_more_method_is_added_to_what_is_there(tiny, tasks: list[str], tmp_path: Path) -> None:
    first = run(tiny, tasks, tmp_path)
    second = run(tiny, tasks, tmp_path, methods=["own", "joint"])
    assert list(second.cells[0].methods) == ["own", "joint"]
    assert second.cells[0].methods["own"] == first.cells[0].methods["own"]
    assert run(tiny, tasks, tmp_path).cells == first.cells


def test_a_method_measured_again(tiny, tasks: list[str], tmp_path: Path) -> None:
    run(tiny, tasks, tmp_path)
    path = tmp_path / Key("lora", "one", 2, 0).path
    cell = json.loads(path.read_text())
    cell["methods"]["own"]["score"] = cell["methods"]["uniform"]["score"] = 7.0
    path.write_text(json.dumps(cell))
    (found,) = [
        cell
        for cell in run(tiny, tasks, tmp_path, redo=["own"]).cells
        if (cell.task, cell.seed) == ("one", 0)
    ]
    assert found.methods["own"].score <= 1
    assert found.methods["uniform"].score == 7.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"steps": 3},
            r"one/2/0\.json: it was measured with other settings, rows or helpers; choose another "
            r"`out`",
        ),
        ({"test_limit": 5}, r"one/2/0\.json: it was measured with other settings"),
        (
            {"full_learning_rate_factor": 0.9},
            r"pool/lora/one: this helper was trained with other settings; .*`overwrite`",
        ),
        (
            {"finetune_learning_rate": 1e-3},
            r"one/2/0\.json: 'full' was measured with other settings; run with `redo=full`, or",
        ),
    ],
)
def test_what_was_made_with_other_settings_is_refused(
    tiny, tasks: list[str], tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    base: dict[str, Any] = {"methods": ["own", "full"], "seeds": [0], "finetune_steps": 1}
    run(tiny, tasks, tmp_path, **base)
    before = contents(tmp_path)
    with pytest.raises(UsageError, match=message):
        run(tiny, tasks, tmp_path, **{**base, **change})
    assert contents(tmp_path) == before
    result = run(tiny, tasks, tmp_path, **{**base, **change}, overwrite=True)
    assert result.missing == 0
    with pytest.raises(UsageError, match="other settings"):
        run(tiny, tasks, tmp_path, **base)


def test_a_summary_of_another_program_is_replaced_only_when_told(
    tiny, tasks: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "project"
    out.mkdir()
    (out / "summary.json").write_text("mine")
    with pytest.raises(UsageError, match=r"project: holds a summary\.json and no cells"):
        run(tiny, tasks, out)
    assert contents(out) == {"summary.json": b"mine"}


def test_learning_rates_count_not_how_they_are_written(
    tiny, tasks: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tiny, tasks[:2], tmp_path, learning_rate_factor=0.5, full_learning_rate_factor=1.0)
    for kind in ("lora", "bitfit"):
        monkeypatch.setitem(
            KINDS, kind, replace(KINDS[kind], learning_rate=2 * KINDS[kind].learning_rate)
        )
    assert (
        run(
            tiny, tasks[:2], tmp_path, learning_rate_factor=0.25, full_learning_rate_factor=0.5
        ).missing
        == 0
    )
    with pytest.raises(UsageError, match="this helper was trained with other settings"):
        run(tiny, tasks[:2], tmp_path, learning_rate_factor=0.5, full_learning_rate_factor=1.0)


def test_a_damaged_cell_is_named(tiny, tasks: list[str], tmp_path: Path) -> None:
    run(tiny, tasks, tmp_path)
    (tmp_path / Key("lora", "two", 2, 0).path).write_text("{")
    with pytest.raises(UsageError, match=r"two/2/0\.json: damaged cell .* delete it and run again"):
        run(tiny, tasks, tmp_path)
    other = tmp_path / "other"
    run(tiny, tasks, other)
    path = other / Key("lora", "one", 2, 1).path
    path.write_text(json.dumps({**json.loads(path.read_text()), "own": {}}))
    with pytest.raises(UsageError, match=r"one/2/1\.json: damaged cell \(KeyError: 'digest'\)"):
        run(tiny, tasks, other)


def test_two_parts_are_the_whole_grid(tiny, tasks: list[str], tmp_path: Path) -> None:
    with pytest.raises(
        UsageError,
        match="3 helpers are missing or of other settings; run with `prepare` before `part`",
    ):
        run(tiny, tasks, tmp_path / "parts", part="0/2")
    assert not (tmp_path / "parts").exists()
    for first in range(2):
        prepared = run(tiny, tasks, tmp_path / "parts", part=f"{first}/2", prepare=True)
    assert (len(prepared.cells), prepared.missing) == (0, 6)
    half = run(tiny, tasks, tmp_path / "parts", part="0/2")
    assert (
        run(tiny, tasks, tmp_path / "parts", part="1/2", steps=9, prepare=True).missing == 6
    )  # this half belongs to other settings
    assert (len(half.cells), half.missing) == (3, 3)
    assert not (tmp_path / "parts" / "summary.json").exists()
    both, whole = (
        run(tiny, tasks, tmp_path / "parts", part="1/2"),
        run(tiny, tasks, tmp_path / "whole"),
    )
    assert both.missing == whole.missing == 0
    assert both.summary == whole.summary


def test_the_parts_of_a_grid_are_disjoint_and_all_of_it() -> None:
    config = CompareSettings(
        tasks=("a", "b"), shots=(2, 4), full=True, full_seeds=(0,), kinds=("lora", "prefix")
    )
    cells = cells_of(config, ["a", "b"])
    assert len(cells) == len(set(cells)) == 2 * (2 * 3 * 2 + 2)
    shares = [Part(first, 3).share(cells) for first in range(3)]
    assert sorted(str(key) for share in shares for key in share) == sorted(map(str, cells))


def test_experts_of_another_pool_may_help(tiny, tasks: list[str], tmp_path: Path) -> None:
    run(tiny, tasks[:2], tmp_path / "first", prepare=True)
    entry = read_pool(tmp_path / "first" / "pool" / "lora")["two"]
    for name in ("stranger", "three"):
        write_expert(entry.expert, tmp_path / "extra" / name, fisher=dict(entry.embedding))
    result = run(
        tiny, [tasks[0], tasks[2]], tmp_path / "second", pool=tmp_path / "extra", seeds=[0]
    )
    helpers = {cell.task: set(cell.helpers) for cell in result.cells}
    assert helpers == {"one": {"three", "stranger"}, "three": {"one", "stranger"}}


def test_a_pool_of_another_size_is_refused_before_anything_is_trained(
    tiny, tasks: list[str], tmp_path: Path
) -> None:
    run(tiny, tasks[:2], tmp_path / "first", seeds=[0])
    with pytest.raises(
        UsageError,
        match=(
            r"'one' is of size 2, and task embeddings compare experts of one size, here 3; give "
            r"`rank=2`"
        ),
    ):
        run(tiny, tasks[1:], tmp_path / "second", pool=tmp_path / "first" / "pool" / "lora", rank=3)
    assert not (tmp_path / "second").exists()


def test_a_pool_that_cannot_help_is_refused(tiny, tasks: list[str], tmp_path: Path) -> None:
    run(tiny, tasks[:2], tmp_path / "first", prepare=True)
    with pytest.raises(
        UsageError,
        match="no expert of kind 'adapter' of this backbone on these sites; run without `pool`",
    ):
        run(
            tiny,
            tasks[:2],
            tmp_path / "second",
            pool=tmp_path / "first" / "pool" / "lora",
            kinds=["adapter"],
        )


def test_kinds_side_by_side(tiny, tasks: list[str], tmp_path: Path) -> None:
    result = run(
        tiny,
        tasks[:2],
        tmp_path,
        kinds=["adapter", "prefix"],
        methods=["own", "uniform", "peft_svd"],
        seeds=[0],
    )
    assert {cell.kind for cell in result.cells} == {"adapter", "prefix"}
    assert all(set(cell.methods) == {"own", "uniform"} for cell in result.cells)


def test_settings_that_make_no_sense(tasks: list[str]) -> None:
    with pytest.raises(UsageError, match=r"unknown key 'seed' \(did you mean 'seeds'\?\)"):
        checked(CompareSettings, {"tasks": tasks, "seed": 1}, where="compare")
    with pytest.raises(
        UsageError,
        match=r"`methods`: expected 'backbone', .*, found 'unifrom' \(did you mean 'uniform'\?\)",
    ):
        checked(
            CompareSettings, {"tasks": tasks, "shots": [2], "methods": ["unifrom"]}, where="compare"
        )
    with pytest.raises(
        UsageError, match=r"interpolation: unknown setting 'fold' \(did you mean 'folds'\?\)"
    ):
        methods_of(
            checked(
                CompareSettings,
                {"tasks": tasks, "shots": [2], "interpolation": {"fold": 2}},
                where="compare",
            ),
            "lora",
        )
    with pytest.raises(UsageError, match=r"no column to measure; give `shots`, `full`, or both"):
        checked(CompareSettings, {"tasks": tasks}, where="compare")
    with pytest.raises(UsageError, match=r"`tasks`: .*at least 2"):
        checked(CompareSettings, {"tasks": tasks[:1], "shots": [2]}, where="compare")
    with pytest.raises(UsageError, match=r"`seeds`: .*1 is there twice"):
        checked(CompareSettings, {"tasks": tasks, "shots": [2], "seeds": [1, 1]}, where="compare")


# The summary of cells.
