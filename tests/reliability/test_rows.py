"""Every row has one test, and the page lists each row with the file that tests it."""

from __future__ import annotations

import re
from pathlib import Path

from benchmarks.bench_reliability import ROWS, claims_of

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "reference" / "reliability.md"


def files_of_rows() -> dict[int, str]:
    """Row to the file of its test."""
    found: dict[int, str] = {}
    for path in sorted(HERE.glob("test_*.py")):
        for number in re.findall(r"^def test_row_(\d+)_", path.read_text(), re.MULTILINE):
            assert int(number) not in found, f"row {number} has two tests"
            found[int(number)] = path.name
    return found


def test_every_row_has_one_test_and_one_line_of_the_page() -> None:
    rows = files_of_rows()
    assert sorted(rows) == list(range(1, ROWS + 1))
    lines = re.findall(r"^\| (\d+) \|.*`(test_\w+\.py)` \|$", PAGE.read_text(), re.MULTILINE)
    assert {int(number): name for number, name in lines} == rows


def test_a_row_without_a_figure_is_an_unmet_claim() -> None:
    figure = {"row": 2, "claim": "row 2: x", "target": 0, "measured": 0, "met": True, "raw": {}}
    claims = claims_of([figure])
    assert [claim["claim"].split(":")[0] for claim in claims] == [
        f"row {number}" for number in range(1, ROWS + 1)
    ]
    assert [claim["met"] for claim in claims] == [number == 2 for number in range(1, ROWS + 1)]
    assert "no figure" in str(claims[0]["measured"])
