"""The same rows answered in this process by the same bank, without a server.

    python -m benchmarks.serving_in_process VERSION_FOLDER ROWS.json SECONDS

The rows are pairs of a text and an expert. Prints a line of JSON.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from pidep.runtime.bank import Bank
from pidep.serving.store import ExpertStore

__all__ = ["main"]

BATCHES = (8, 16, 32, 64)


def main(folder: str, rows_path: str, seconds: str) -> int:
    """Measure one row after the other, then batches of several sizes."""
    bank = Bank(Path(folder))
    residents = bank.build(ExpertStore(bank.store).published())
    asked = json.loads(Path(rows_path).read_text())
    found: dict[str, Any] = {"one": {}, "batches": {}}
    for size in (1, *BATCHES):
        times, rows, at = [], 0, 0
        until, used = time.perf_counter() + float(seconds), 0.0
        while time.perf_counter() < until:
            # One row is always the same one, as for the server.
            some = [asked[0]] if size == 1 else [asked[(at + n) % len(asked)] for n in range(size)]
            at, rows = at + size, rows + size
            cpu, start = sum(os.times()[:2]), time.perf_counter()
            bank.run(residents, [text for text, _ in some], [name for _, name in some])
            times.append(time.perf_counter() - start)
            used += sum(os.times()[:2]) - cpu
        measured = {
            "p50_ms": round(1e3 * statistics.median(times), 3),
            "rows_per_s": round(rows / sum(times), 2),
            "cpu_ms_per_row": round(1e3 * used / rows, 4),
        }
        if size == 1:
            found["one"] = measured
        else:
            found["batches"][str(size)] = measured
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
