"""Time one engine: `python -m benchmarks.engines.run FOLDER MAKER [ARGUMENT]` prints JSON.

MAKER is `file:function` in this folder. The result has, by size, the median and the least
milliseconds of a batch, and its answer.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.engines.batch import SIZES, Batch, name_of

__all__ = ["main"]

SECONDS = float(os.environ.get("PIDEP_BENCH_SECONDS", "0.5"))
"""How long an engine runs one size."""
AT_LEAST = 5


def _timed(call: Callable[[], Any]) -> dict[str, float]:
    call()
    call()
    times: list[float] = []
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end or len(times) < AT_LEAST:
        start = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - start))
    return {"median_ms": statistics.median(times), "least_ms": min(times)}


def main() -> int:
    """Make the engine and time it at every size."""
    folder, (file, function), arguments = Path(sys.argv[1]), sys.argv[2].split(":"), sys.argv[3:]
    make = getattr(import_module(f"benchmarks.engines.{file}"), function)
    engine = make(folder, *arguments)
    if isinstance(engine, dict):  # a measurement without batches
        print(json.dumps(engine))
        return 0
    found = {}
    for rows, tokens in SIZES:
        call = engine(Batch.of(rows, tokens))
        answer = call()
        found[name_of(rows, tokens)] = {
            **_timed(call),
            "answer": None if answer is None else [[float(one) for one in row] for row in answer],
        }
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
