"""`make test-reliability`: the forty rows of what serving must survive, in their long form.

Runs `tests/reliability` and writes `benchmarks/results/reliability.json`, a claim a row.

    python -m benchmarks.bench_reliability [-k "row_7 or row_28"]

Options go to pytest. Rows that they leave out keep the figures of an earlier run; `raw.kept` names
them.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.record import RESULTS, Claim, write_result

__all__ = ["ROWS", "claims_of", "main"]

ROWS = 40
_ROOT = Path(__file__).parent.parent
# One process: rows that measure times would disturb each other.
_PYTEST = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "--timeout", "900", "tests/reliability")


def claims_of(figures: list[dict[str, Any]], kept: Sequence[Claim] = ()) -> list[Claim]:
    """A claim a row, in order; a row whose test gave no figure is unmet.

    Args:
        kept: claims of an earlier run, for the rows that were not run again.
    """
    by_row = {figure["row"]: figure for figure in figures}
    before = {int(claim["claim"].split(":")[0].removeprefix("row ")): claim for claim in kept}
    claims: list[Claim] = []
    for row in range(1, ROWS + 1):
        figure = by_row.get(row)
        if figure is None and row in before:
            claims.append(before[row])
        elif figure is None:
            missing = "no figure: its test failed before it measured, or was skipped"
            claims.append(
                {"claim": f"row {row}: holds", "target": "", "measured": missing, "met": False}
            )
        else:
            claims.append(
                {
                    "claim": figure["claim"],
                    "target": figure["target"],
                    "measured": figure["measured"],
                    "met": figure["met"],
                }
            )
    return claims


def main() -> int:
    """Run the rows; gives pytest's exit code."""
    with tempfile.TemporaryDirectory() as folder:
        lines = Path(folder) / "figures.jsonl"
        lines.touch()
        variables = {"PIDEP_RELIABILITY": "long", "PIDEP_RELIABILITY_FIGURES": str(lines)}
        started = time.monotonic()
        done = subprocess.run(
            [sys.executable, *_PYTEST, *sys.argv[1:]],
            cwd=_ROOT,
            env={**os.environ, **variables},
            check=False,
        )
        figures = [json.loads(line) for line in lines.read_text(encoding="utf-8").splitlines()]
    earlier: dict[str, Any] = {}
    if sys.argv[1:]:
        earlier = json.loads((RESULTS / "reliability.json").read_text(encoding="utf-8"))
    claims = claims_of(figures, earlier.get("claims", ()))
    own = {str(figure["row"]): figure["raw"] for figure in figures}
    kept = {
        row: raw for row, raw in earlier.get("raw", {}).get("rows", {}).items() if row not in own
    }
    path = write_result(
        "reliability",
        command=shlex.join(["python", "-m", "benchmarks.bench_reliability", *sys.argv[1:]]),
        raw={
            "seconds": round(time.monotonic() - started, 1),
            "exit_code": done.returncode,
            "kept": sorted(map(int, kept)),
            "rows": {**kept, **own},
        },
        claims=claims,
    )
    unmet = [claim["claim"] for claim in claims if not claim["met"]]
    print(f"{path}: {ROWS - len(unmet)} of {ROWS} rows hold", *unmet, sep="\n  ")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
