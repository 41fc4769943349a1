"""The summary of a comparison's cells, the benchmark's claims and its command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pidep.cli.app import main
from pidep.cli.compare import draw_tables
from pidep.errors import UsageError
from pidep.lab.compare_grid import REVISIONS, Part, cells_of, methods_of
from pidep.lab.compare_summary import summarise
from pidep.lab.settings import METHODS, CompareSettings, GridSettings
from pidep.settings import checked
from tests.cli.run import Done, untouched

pytestmark = pytest.mark.slow  # whole comparisons and pages


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
