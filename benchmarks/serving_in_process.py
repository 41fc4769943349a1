"""The same rows answered in this process by the same bank, without a server.

    python -m benchmarks.serving_in_process VERSION_FOLDER ROWS.json

The rows are pairs of a text and an expert. Each line of standard input, `ROWS_OF_A_BATCH SECONDS`,
is a measurement; its result is a line of JSON. Between them the process sleeps.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from pidep.runtime.bank import Bank, Residents
from pidep.serving.store import ExpertStore

__all__ = ["main"]


def measure(
    bank: Bank, residents: Residents, asked: list[list[str]], *, size: int, seconds: float
) -> dict[str, Any]:
    """Rates and latencies of batches of one size."""
    times, rows, at = [], 0, 0
    until, cpu = time.perf_counter() + seconds, sum(os.times()[:2])
    while time.perf_counter() < until:
        # One row is always the same one, as for the server.
        some = [asked[0]] if size == 1 else [asked[(at + n) % len(asked)] for n in range(size)]
        at, rows = at + size, rows + size
        start = time.perf_counter()
        bank.run(residents, [text for text, _ in some], [name for _, name in some])
        times.append(time.perf_counter() - start)
    return {
        "p50_ms": round(1e3 * statistics.median(times), 3),
        "rows_per_s": round(rows / sum(times), 2),
        "cpu_ms_per_row": round(1e3 * (sum(os.times()[:2]) - cpu) / rows, 4),
    }


def main(folder: str, rows_path: str) -> int:
    """Measure what standard input asks for."""
    bank = Bank(Path(folder))
    residents = bank.build(ExpertStore(bank.store).published())
    asked = json.loads(Path(rows_path).read_text())
    for line in sys.stdin:
        size, seconds = line.split()
        found = measure(bank, residents, asked, size=int(size), seconds=float(seconds))
        print(json.dumps(found), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
