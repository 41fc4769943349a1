"""`make claims`: one table of every claim the project makes, from `benchmarks/results/*.json`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.record import RESULTS, Claim, check_result
from pidep.errors import PidepError

__all__ = ["main", "read_claims"]


def read_claims(folder: Path) -> list[tuple[str, dict[str, Any], list[Claim]]]:
    """(name, result, claims) of every result, by name.

    Raises:
        PidepError: there is none, or one is malformed.
    """
    results = []
    for path in sorted(folder.glob("*.json")):
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise PidepError(
                f"{path}: not readable as JSON ({error}); run its benchmark again"
            ) from error
        results.append((path.stem, result, check_result(path, result)))
    if not results:
        raise PidepError(f"{folder}: no results yet; `make demo` writes the first")
    return results


def _shown(value: str | float) -> str:
    return (
        escape(value)
        if isinstance(value, str)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )


def main(folder: Path = RESULTS) -> int:
    """Print the table; gives 1 when a result is malformed or there is none. Unmet claims
    are shown.
    """
    try:
        results = read_claims(folder)
    except PidepError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    table = Table(title="What pidep claims")
    for column in ("result", "claim", "target", "measured", "met", "machine"):
        table.add_column(column, overflow="fold")
    for name, result, claims in results:
        where = (
            f"{result['machine'].get('gpu') or result['machine'].get('cpu', '?')}, "
            f"{result['machine'].get('cores', '?')} cores"
        )
        for claim in claims:
            met = "[green]yes[/green]" if claim["met"] else "[red]no[/red]"
            table.add_row(
                escape(name),
                escape(claim["claim"]),
                _shown(claim["target"]),
                _shown(claim["measured"]),
                met,
                escape(where),
            )
    Console().print(table)
    every = [claim for _, _, claims in results for claim in claims]
    print(f"{sum(claim['met'] for claim in every)} of {len(every)} claims met")
    return 0


if __name__ == "__main__":
    sys.exit(main())
