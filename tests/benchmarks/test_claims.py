"""Result files carry what a claim needs. A malformed file is an error; an unmet claim is shown."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks.claims import main
from benchmarks.record import Claim, write_result
from pidep.errors import PidepError

CLAIM: Claim = {"claim": "swap loses [no] request", "target": "0", "measured": 0, "met": True}


def test_table_shows_met_and_unmet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_result(
        "demo",
        command="make demo",
        raw=[1, 2],
        claims=[CLAIM, {**CLAIM, "claim": "fast", "met": False}],
        folder=tmp_path,
    )
    assert main(tmp_path) == 0
    shown = capsys.readouterr().out
    assert "[no]" in shown
    assert "1 of 2 claims met" in shown
    written = json.loads((tmp_path / "demo.json").read_text())
    assert written["machine"]["cores"] >= 1
    assert {"python", "numpy"} <= set(written["versions"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"claims": []}, "claims is missing, empty"),
        (
            {"claims": [{"claim": "x"}]},
            r"claims\[0\]: expected exactly claim, target, measured, met",
        ),
        ({"claims": [{**CLAIM, "met": "yes"}]}, "met true or false"),
        ({"claims": [{**CLAIM, "measured": None}]}, "measured must be text or a finite number"),
        ({"machine": {}}, "machine is missing, empty"),
        ({"command": None}, "command is missing"),
    ],
)
def test_a_malformed_result_is_an_error(
    tmp_path: Path, change: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_result("demo", command="make demo", raw=[], claims=[CLAIM], folder=tmp_path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    assert main(tmp_path) == 1
    error = capsys.readouterr().err
    assert "demo.json" in error

    assert re.search(message, error)


def test_truncated_or_absent_results_are_errors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(tmp_path) == 1
    assert "no results yet" in capsys.readouterr().err
    (tmp_path / "demo.json").write_text('{"claims": [')
    assert main(tmp_path) == 1
    assert "not readable as JSON" in capsys.readouterr().err


def test_numbers_must_be_finite(tmp_path: Path) -> None:
    with pytest.raises(PidepError, match="finite"):
        write_result(
            "x", command="c", raw=[], claims=[{**CLAIM, "measured": math.nan}], folder=tmp_path
        )
    with pytest.raises(PidepError, match="raw runs cannot be written"):
        write_result("x", command="c", raw=[math.inf], claims=[CLAIM], folder=tmp_path)
    assert not list(tmp_path.iterdir())
