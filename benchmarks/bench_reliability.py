"""`make test-reliability`: the forty rows of what serving must survive, in their long form.

Runs `tests/reliability` and writes `benchmarks/results/reliability.json`, a claim a row.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.record import Claim, write_result

__all__ = ["ROWS", "claims_of", "main"]

ROWS = 40
_ROOT = Path(__file__).parent.parent
# One process: rows that measure times would disturb each other.
_PYTEST = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "--timeout", "900", "tests/reliability")


def claims_of(figures: list[dict[str, Any]]) -> list[Claim]:
    """A claim a row, in order; a row whose test gave no figure is unmet."""
    by_row = {figure["row"]: figure for figure in figures}
    claims: list[Claim] = []
    for row in range(1, ROWS + 1):
        figure = by_row.get(row)
        if figure is None:
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
    claims = claims_of(figures)
    path = write_result(
        "reliability",
        command="make test-reliability",
        raw={
            "seconds": round(time.monotonic() - started, 1),
            "exit_code": done.returncode,
            "rows": {str(figure["row"]): figure["raw"] for figure in figures},
        },
        claims=claims,
    )
    unmet = [claim["claim"] for claim in claims if not claim["met"]]
    print(f"{path}: {ROWS - len(unmet)} of {ROWS} rows hold", *unmet, sep="\n  ")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
