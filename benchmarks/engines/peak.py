"""What the machine's matrix products reach: the bound of every engine."""

from __future__ import annotations

import os
import statistics
import time
from pathlib import Path

import torch

__all__ = ["products"]

SIZE = 2048


def products(_: Path) -> dict[str, float]:
    """GFLOP/s of a square product in fp32 and bf16, median of ten."""
    torch.set_num_threads(os.cpu_count() or 1)
    found = {}
    for name, dtype in (("sgemm", torch.float32), ("bf16", torch.bfloat16)):
        left, right = torch.randn(SIZE, SIZE, dtype=dtype), torch.randn(SIZE, SIZE, dtype=dtype)
        left @ right
        times = []
        for _ in range(10):
            start = time.perf_counter()
            left @ right
            times.append(time.perf_counter() - start)
        found[name] = 2 * SIZE**3 / statistics.median(times) / 1e9
    return found
