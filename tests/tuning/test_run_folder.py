"""The run folder is read as it was written. tests/lab/test_report.py damages one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pidep.errors import UsageError
from pidep.tuning.run_folder import Alpha, TuneResult, is_run_folder, read_run, run_task
from pidep.tuning.settings import TuneSettings
from pidep.tuning.tune import tune


@pytest.fixture
def result(tiny_folder: Path, task_file: Path, tmp_path: Path) -> TuneResult:
    config = TuneSettings(
        task=str(task_file),
        backbone=str(tiny_folder),
        sites=["encoder.layer.1.*"],
        rank=2,
        steps=2,
        eval_every=1,
        fisher_samples=4,
    )
    return tune(config, tmp_path / "run")


def test_it_is_read_as_it_was_written(result: TuneResult) -> None:
    run = read_run(result.run)
    assert (run.name, run.metric, run.metrics) == ("film", "accuracy", result.metrics)
    assert run.intervals.keys() == run.metrics.keys()
    for method, found in run.intervals.items():
        assert found.low <= run.metrics[method] <= found.high
        assert found.method == "Wilson"
    assert result.to_json()["intervals"]["own_expert"][2] == "Wilson"
    assert run.expert.digest == result.digest
    assert run.own is not None
    assert run.experts == {"own expert": run.own}
    assert run.labels == ("negative", "positive")
    assert (run.neighbours, run.pool, run.zero_shot, run.decision) == ({}, None, False, None)
    assert run.alpha == Alpha(("film",), {}, (1.0,))
    (phase,) = run.phases
    assert (phase.name, phase.steps, [entry.step for entry in phase.history]) == ("own", 2, [1, 2])
    assert all(entry.held_out is not None for entry in phase.history)
    assert run.seconds == result.seconds
    assert list(run.seconds_by_phase) == ["own expert", "neighbours", "evaluate"]
    assert TuneSettings.model_validate(run.config).rank == 2


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("alpha.json", "1.0", f"1{'0' * 400}", r"alpha\.json: .*more than 64 bits"),
        ("metrics.json", '"test_rows": ', '"test_rows": 1e999, "more": ', "malformed .*infinity"),
        ("provenance.json", '"seconds": ', f'"deep": {"[" * 5000}, "seconds": ', "nested too deep"),
        ("config.yaml", '"rank": 2', f'"rank": {"9" * 5001}', "not readable as YAML"),
        ("config.yaml", '"kind": "lora"', '"kind": "\\ud83d"', "config.yaml: .*not UTF-8"),
    ],
)
def test_what_no_number_can_hold_is_one_line(
    result: TuneResult, name: str, old: str, new: str, message: str
) -> None:
    path = result.run / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(UsageError, match=message) as error:
        read_run(result.run)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"), [("[" * 5000, "nested too deeply"), ("{", "Expecting"), ("{}", "name")]
)
def test_a_damaged_task_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "task.json").write_text(text)
    with pytest.raises(UsageError, match=rf"task\.json: damaged \(.*{message}"):
        run_task(tmp_path)


def test_it_is_complete_once_its_result_is_there(result: TuneResult) -> None:
    assert is_run_folder(result.run)
    (result.run / "result.json").unlink()
    assert not is_run_folder(result.run)
    with pytest.raises(UsageError, match="no run folder"):
        read_run(result.run)


def test_alpha_keeps_its_mean() -> None:
    alpha = Alpha.of(("own", "helper"), {"a": [1.0, 0.0], "b": [0.5, 0.5]})
    assert alpha.mean == (0.75, 0.25)
    assert alpha.to_json()["sites"] == {"a": [1.0, 0.0], "b": [0.5, 0.5]}


def test_run_folders_are_read_without_torch() -> None:
    code = "import sys, pidep.tuning.run_folder; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
