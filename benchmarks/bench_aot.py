"""Needs of the fused kernels on an A100, H100 and B200, compiled without one.

Writes `benchmarks/results/kernels-aot.json`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import asdict

from benchmarks.record import Claim, write_result
from pidep.kernels.interpolate.index import GRAIN
from tools.ahead_of_time import TARGETS, Resources, compile_all

__all__ = ["claims_of", "main", "vectors"]

_SHARED = 99 * 1024
"""Shared memory of a program on compute capability 8.6 and 8.9 (RTX 30 and 40, A10, L4, L40): the
smallest limit of all supported GPUs.
"""


def vectors(one: Resources) -> int:
    """128-bit loads of a thread for one grain of every row, when the whole arena is loaded that
    way.
    """
    rows = sum(int(number) for number in re.findall(r"[TF]=(\d+)", one.constants))
    return rows * GRAIN * (4 if one.dtype == "float32" else 2) // (16 * 32 * one.num_warps)


def claims_of(found: Sequence[Resources]) -> list[Claim]:
    """Claims: nothing spills, everything fits, and the arena is read 128 bits at a time."""
    launches = {(one.kernel, one.constants, one.dtype) for one in found}
    spilling = sum(one.spills > 0 for one in found)
    largest = max(one.shared for one in found)
    passes = [one for one in found if one.kernel in ("interpolate_forward", "interpolate_backward")]
    narrow = sum(
        one.loads.get("128", 0) < vectors(one)
        or any(width in one.loads for width in ("8", "16", "64"))
        for one in passes
    )
    where = (
        f"{len(launches)} launches of {len({one.kernel for one in found})} kernels × "
        f"{len(TARGETS)} targets"
    )
    return [
        {
            "claim": f"register spills in {where}",
            "target": 0,
            "measured": spilling,
            "met": spilling == 0,
        },
        {
            "claim": "largest shared memory, bytes (all GPUs from 8.0 on have it)",
            "target": f"≤ {_SHARED}",
            "measured": largest,
            "met": largest <= _SHARED,
        },
        {
            "claim": f"of {len(passes)} passes over an arena, "
            "those that load it narrower than 128 bits",
            "target": 0,
            "measured": narrow,
            "met": narrow == 0,
        },
    ]


def main() -> int:
    """Compile, and write the result."""
    found = list(compile_all())
    path = write_result(
        "kernels-aot",
        command="python -m benchmarks.bench_aot",
        raw=[asdict(one) for one in found],
        claims=claims_of(found),
    )
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
