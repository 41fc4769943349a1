"""A swap and a batch with 10, 100 and 1,000 resident experts: time and memory, in process.

Writes `benchmarks/results/swap.json`. The bank is MiniLM's with a LoRA of rank 8 on every Linear.
A swap is what the server's watcher does: the new expert is placed, becomes the meaning of its name,
and answers the probe rows.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.minilm_bank import varied, write_bank
from benchmarks.record import Claim, write_result
from pidep.experts.folder import Expert
from pidep.runtime import Bank
from pidep.runtime.bank import Resident

__all__ = ["claims_of", "main"]

RESIDENTS = (10, 100, 1000)
SWAPS, BATCHES = 100, 50
TEXTS = ["the battery died after two days and nobody at the shop would help me with it"] * 8


def rss_mib() -> float:
    """Resident memory of this process in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


def measure(bank: Bank, expert: Expert, held: dict[str, Resident]) -> dict[str, Any]:
    """Milliseconds of swaps and of batches with these residents."""
    names, residents = list(held), bank.serving(held)
    rng = np.random.default_rng(0)
    swaps, batches = [], []
    # Made before: a swap reads its expert from a file, whose cost is the same for all.
    fresh_ones = [varied(expert, 10_000 + number) for number in range(4)]
    for number in range(SWAPS):
        name, one = names[number % len(names)], fresh_ones[number % 4]
        start = time.perf_counter()
        resident = bank.place(one, digest=f"sha256:{number}")
        residents = bank.serving({**residents.by_name, name: resident})
        assert not bank.probe(residents, [name])
        swaps.append(1e3 * (time.perf_counter() - start))
    for _ in range(BATCHES):
        # As Zipf's law: few names get most of the rows.
        asked = [names[min(int(at), len(names)) - 1] for at in rng.zipf(1.2, len(TEXTS))]
        start = time.perf_counter()
        bank.run(residents, TEXTS, asked)
        batches.append(1e3 * (time.perf_counter() - start))
    return {
        "residents": len(names),
        "swap_ms": swaps,
        "batch_ms": batches,
        "rss_mib": rss_mib(),
        "slots": bank.arena.used,
    }


def claims_of(runs: list[dict[str, Any]], bytes_per_expert: int, base_mib: float) -> list[Claim]:
    """The last run has the most residents."""
    few, many = runs[0], runs[-1]
    claims: list[Claim] = []
    for what in ("swap", "batch"):
        first, last = (statistics.median(run[f"{what}_ms"]) for run in (few, many))
        claims.append(
            {
                "claim": f"time of a {what} with {many['residents']} residents over "
                f"{few['residents']}",
                "target": "≤ 1.1",
                "measured": round(last / first, 3),
                "met": last / first <= 1.1,
            }
        )
    expected = base_mib + many["residents"] * bytes_per_expert / 2**20
    ratio = many["rss_mib"] / expected
    claims.append(
        {
            "claim": f"memory with {many['residents']} residents over backbone and their bytes",
            "target": "≤ 1.1",
            "measured": round(ratio, 3),
            "met": ratio <= 1.1,
        }
    )
    return claims


def main() -> int:
    """Measure in one process, with ever more residents."""
    with tempfile.TemporaryDirectory() as folder:
        expert = write_bank(Path(folder), store="../store")
        bank = Bank(Path(folder))
        bank.run(bank.serving({}), TEXTS, ["@backbone"] * len(TEXTS))
        base_mib, runs = rss_mib(), []
        held: dict[str, Resident] = {}
        for count in RESIDENTS:
            for number in range(len(held), count):
                one = varied(expert, number)
                held[one.name] = bank.place(one)
            # It makes the residents itself: a second set would keep arrays that were outgrown.
            runs.append(measure(bank, expert, held))
            print({key: value for key, value in runs[-1].items() if not key.endswith("_ms")})
        path = write_result(
            "swap",
            command="python -m benchmarks.bench_swap",
            raw={
                "runs": runs,
                "bytes_per_expert": bank.arena.bytes_per_slot,
                "base_mib": base_mib,
            },
            claims=claims_of(runs, bank.arena.bytes_per_slot, base_mib),
        )
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
