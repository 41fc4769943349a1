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
from pidep.cli.app import main
from pidep.cli.compare import draw_tables
from pidep.errors import UsageError
from pidep.experts.folder import read_expert, write_expert
from pidep.lab.compare import CompareResult, OnCell, compare
from pidep.lab.compare_grid import REVISIONS, Grid, Key, Part, cells_of, methods_of
from pidep.lab.compare_summary import summarise
from pidep.lab.settings import METHODS, CompareSettings, GridSettings
from pidep.settings import checked
from pidep.similarity.pool import read_pool
from tests.cli.run import Done, untouched

pytestmark = pytest.mark.slow  # whole comparisons and pages

TINY: dict[str, Any] = {
    "steps": 2,
    "epochs": 0,
    "batch_size": 8,
    "full_steps": 3,
    "full_batch_size": 8,
    "eval_every": 2,
    "rank": 2,
    "fisher_samples": 4,
    "test_limit": 6,
    "sites": ["encoder.layer.1.*"],
    "methods": ["backbone", "own", "uniform"],
    "shots": [2],
    "seeds": [0, 1],
}


@pytest.fixture
def tasks(task_file: Path) -> list[str]:
    """Three tasks over the same rows, with different splits."""
    text = task_file.read_text()
    files = []
    for seed, name in enumerate(("one", "two", "three")):
        path = task_file.with_name(f"{name}.yaml")
        path.write_text(text.replace("name: film", f"name: {name}") + f"split_seed: {seed}\n")
        files.append(str(path))
    return files


def run(
    tiny, tasks: list[str], out: Path, *, on_cell: OnCell | None = None, **settings: Any
) -> CompareResult:  # type: ignore[no-untyped-def]
    how = {
        key: settings.pop(key)
        for key in ("part", "prepare", "overwrite", "redo")
        if key in settings
    }
    config = checked(CompareSettings, {**TINY, "tasks": tasks, **settings}, where="compare")
    return compare(
        Grid(config, tiny),
        checked(GridSettings, {"out": out, **how}, where="compare"),
        on_cell=on_cell,
    )


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


def cell(task: str, seed: int, *, shots: int | None = 8, **scores: float) -> dict[str, Any]:
    methods = {name: {"score": value} for name, value in scores.items()}
    return {"kind": "lora", "task": task, "shots": shots, "seed": seed, "methods": methods}


def test_means_deviations_and_differences() -> None:
    summary = summarise(
        [
            cell("a", 0, own=0.5, uniform=0.7, pi=0.8),
            cell("a", 1, own=0.7, uniform=0.7, pi=0.8),
            cell("b", 0, own=0.9, uniform=0.6, pi=0.85),
            cell("a", 0, shots=None, own=0.9, pi=0.95),
        ]
    )
    run = {(row.task, row.method, row.shots): row for row in summary.runs}
    assert run["a", "own", 8].mean == pytest.approx(0.6)
    assert run["a", "own", 8].sd == pytest.approx(0.2 / 2**0.5)
    assert run["a", "own", 8].scores == {"0": 0.5, "1": 0.7}
    assert run["b", "own", 8].sd is None
    average = {(row.method, row.shots): row.mean for row in summary.averages}
    assert average["own", 8] == pytest.approx(0.75)
    assert average["pi", None] == pytest.approx(0.95)
    minus = {(row.minus, row.shots): row for row in summary.differences}
    assert minus["own", 8].tasks == pytest.approx({"a": 0.2, "b": -0.05})
    assert minus["own", 8].mean == pytest.approx(0.075)
    assert minus["uniform", 8].mean == pytest.approx((0.1 + 0.25) / 2)
    assert ("uniform", None) not in minus


def test_losing_cases_are_listed() -> None:
    summary = summarise(
        [
            cell("a", 0, own=0.5, full=0.95, pi=0.8),
            cell("b", 0, own=0.9, full=0.6, pi=0.85),
            cell("c", 0, own=0.5, pi=0.5),
        ]
    )
    losing = {(row.task, row.against): row for row in summary.losing}
    assert losing.keys() == {("a", "full"), ("b", "own")}
    assert losing["b", "own"].difference == pytest.approx(-0.05)
    assert losing["b", "own"].guarded
    assert not losing["a", "full"].guarded


def test_differences_are_over_the_seeds_both_have() -> None:
    summary = summarise([cell("a", 0, own=0.5, pi=0.6), cell("a", 1, pi=0.1)])
    assert summary.differences[0].tasks == pytest.approx({"a": 0.1})


def made_up(kind: str, shots: int | None, *, pi: dict[str, float]) -> list[dict[str, Any]]:
    """A column of the benchmark: 0.6 for the own expert, 0.7 for the uniform mixture, and π as
    given.
    """
    same = {"own": 0.6, "uniform": 0.7, "joint": 0.65}
    return [
        {**cell(task, 0, shots=shots, **same, pi=pi.get(task, 0.72)), "kind": kind}
        for task in ("amazon", "movie")
    ]


def test_the_claims_of_the_benchmark() -> None:
    from benchmarks.bench_method import claims

    columns = [
        ("lora", 8),
        ("lora", 32),
        ("lora", 128),
        ("lora", None),
        ("adapter", 8),
        ("adapter", 128),
        ("prefix", 8),
        ("prefix", 128),
    ]
    lost = {
        ("lora", 8): {"movie": 0.68},
        ("lora", 32): {"movie": 0.69},
        ("adapter", 128): {"amazon": 0.59},
    }
    cells = [
        found
        for kind, shots in columns
        for found in made_up(kind, shots, pi=lost.get((kind, shots), {}))
    ]
    found = {
        claim["claim"].removesuffix(", points of accuracy"): claim
        for claim in claims(summarise(cells).to_json())
    }
    assert len(found) == 3 * 3 + len(columns) + 4
    average = "average of 4 targets × 3 seeds"
    assert found[f"lora, 8 shots: π minus own expert, {average}"]["measured"] == pytest.approx(10)
    assert found[f"lora, 8 shots: π minus uniform mixture, {average}"] == {
        "claim": f"lora, 8 shots: π minus uniform mixture, {average}, points of accuracy",
        "target": ">= 1",
        "measured": 0.0,
        "met": False,
    }
    guard = "π minus the best of own expert and uniform mixture, worst target's mean"
    assert (
        found[f"lora, 8 shots: {guard}"]["measured"],
        found[f"lora, 8 shots: {guard}"]["met"],
    ) == (-2.0, False)
    assert (
        found[f"lora, 32 shots: {guard}"]["measured"],
        found[f"lora, 32 shots: {guard}"]["met"],
    ) == (-1.0, True)
    below = "π minus own expert, worst target's mean"
    assert found[f"lora, full data: {below}"]["met"]
    assert not found[f"adapter, 128 shots: {below}"]["met"]


def test_a_revision_is_of_a_method_and_a_kind() -> None:
    config = CompareSettings(tasks=("a", "b"), shots=(2,), kinds=("lora", "prefix"))
    lora, prefix = (methods_of(config, kind) for kind in config.kinds)
    assert prefix["pi"] == {**lora["pi"], "revision": REVISIONS["pi"]["prefix"]} != lora["pi"]
    assert prefix["own_tuned"] == lora["own_tuned"]


def test_the_best_method_in_hindsight() -> None:
    from benchmarks.bench_method import in_hindsight

    cells = [
        cell("a", 0, own=0.5, uniform=0.7, joint=0.6, pi=0.8),
        cell("a", 1, own=0.7, uniform=0.9, joint=0.6, pi=0.8),
    ]
    assert in_hindsight(cells) == {
        "lora, 8 shots": {
            "best": 85,
            "minus own": 25,
            "minus uniform": 5,
            "minus joint": 25,
            "minus pi": 5,
        }
    }


def test_the_grid_of_the_benchmark() -> None:
    from benchmarks.bench_method import DOMAINS, GRIDS
    from benchmarks.grid_command import read_cells

    cells = [key for config in GRIDS for key in cells_of(config, DOMAINS)]
    assert len(cells) == len(set(cells)) == 4 * 3 * (4 + 2 + 2)
    assert len(read_cells(GRIDS, DOMAINS, Path("nowhere"))[1]) == len(cells)
    methods = {
        (kind, shots): set(methods_of(config, kind))
        for config in GRIDS
        for kind in config.kinds
        for shots in config.shots
    }
    every = set(METHODS) - {
        "pi_trial",
        "uniform_outputs",
        # with three helpers in the pool there is no choice, and a LoRA's uniform mixture is on
        # outputs already
    }
    assert methods["lora", 8] == methods["lora", 128] == every
    assert every - methods["lora", 32] == {
        "own_tuned",
        "peft_linear",
        "peft_svd",
        "peft_cat",
        "lorahub",
    }


def test_the_tables(capsys: pytest.CaptureFixture[str]) -> None:
    draw_tables(
        summarise(
            [
                cell("a", 0, own=0.5, pi=0.8),
                cell("a", 1, own=0.7, pi=0.8),
                cell("b", 0, shots=None, own=0.9, pi=0.85),
            ]
        )
    )
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert "lora, 8 shots a label, 2 seeds" in lines
    assert "lora, full data, 1 seed" in lines
    assert any(
        line.split("│")[1:4] == [" own expert ", " 60.0 ± 14.1 ", " 60.0    "] for line in lines
    )
    assert lines[-1] == "π loses: lora, b, full: -5.0 against own expert"


def test_the_command(
    tiny_folder: Path,
    tasks: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments = [
        "compare",
        *tasks[:2],
        "--shots",
        "2",
        "--seeds",
        "0,1",
        "--methods",
        "own,uniform",
        "--sites",
        "encoder.layer.1.*",
    ]
    arguments += [
        "--backbone",
        str(tiny_folder),
        "--rank",
        "2",
        "--steps",
        "2",
        "--full-steps",
        "2",
        "--test-limit",
        "6",
    ]

    def run(*more: str) -> tuple[int, str, str]:
        monkeypatch.setattr(
            "sys.argv", ["pidep", *arguments, "--out", str(tmp_path / "run"), *more]
        )
        with pytest.raises(SystemExit) as ended:
            main()
        done = Done.of(int(ended.value.code or 0), *capsys.readouterr())
        return done.code, done.out, done.err

    code, out, err = run("--json")
    assert (code, err) == (0, "")
    printed = json.loads(out)
    assert printed["missing"] == 0
    assert len(printed["cells"]) == 4
    code, out, _ = run()
    assert "lora, 2 shots a label, 2 seeds" in out
    with untouched(tmp_path):
        code, out, err = run("--steps", "9")
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert "choose another --out" in err


@pytest.mark.parametrize("text", ["2/2", "1", "a/b", "-1/2", "1/" + "9" * 5001])
def test_an_invalid_part(text: str) -> None:
    with pytest.raises(UsageError, match=r"`part`: expected I/N with I from 0 to N - 1"):
        checked(GridSettings, {"part": text}, where="compare")


def test_a_part_is_a_share_of_the_cells() -> None:
    assert Part.of_text("1/3").share(list("abcdefg")) == ["b", "e"]
