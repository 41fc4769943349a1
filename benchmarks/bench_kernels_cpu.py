"""Interpolation on the CPU: share of memcpy bandwidth, beside the naive expression and PEFT.

    python -m benchmarks.bench_kernels_cpu

The PEFT baseline is `add_weighted_adapter`. The cases of a group are timed in turns; medians of
wall time on all threads of the machine.
"""

from __future__ import annotations

import argparse
import os
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.record import RESULTS, Claim, write_result
from pidep.kernels.interpolate import ArenaIndex, interpolate, reference

__all__ = ["main"]

SHARE_TARGET = 0.7
FASTER_TARGET = 5.0
NUM_SITES = 30
NUM_EXPERTS = 4
RANK = 8
MEASUREMENT_S = 0.02
Work = Callable[[], object]


def in_turns(cases: Mapping[str, Work], *, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of a call: one measurement per round and case, after a warm-up."""
    repeats = {}
    for name, work in cases.items():
        work()
        began = time.perf_counter()
        work()
        repeats[name] = max(1, round(MEASUREMENT_S / max(time.perf_counter() - began, 1e-7)))
    times: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, work in cases.items():
            began = time.perf_counter()
            for _ in range(repeats[name]):
                work()
            times[name].append((time.perf_counter() - began) * 1e3 / repeats[name])
    return times


def _summary(
    times: Mapping[str, list[float]], moved: Mapping[str, int]
) -> dict[str, dict[str, Any]]:
    """Median, spread, and GB/s where the number of bytes to move is known."""
    found = {}
    for name, each in times.items():
        low, middle, high = (
            statistics.quantiles(each, n=5)[0],
            statistics.median(each),
            statistics.quantiles(each, n=5)[3],
        )
        found[name] = {
            "p20_ms": round(low, 4),
            "p50_ms": round(middle, 4),
            "p80_ms": round(high, 4),
            "runs_ms": [round(value, 4) for value in each],
        }
        if name in moved:
            found[name] |= {"bytes": moved[name], "gb_per_s": round(moved[name] / middle / 1e6, 2)}
    return found


def naive(rows: Tensor, logits: Tensor) -> Tensor:
    """The naive expression."""
    alpha = torch.softmax(logits, 0)
    total = alpha[0] * rows[0]
    for k in range(1, len(rows)):
        total = total + alpha[k] * rows[k]
    return total


def bandwidth(size: int, count: int, *, num_sites: int, rounds: int) -> dict[str, Any]:
    """One arena `[count, size]`, beside a copy of as many bytes.

    Forward, and backward with all experts learned and with all frozen.
    """
    index = ArenaIndex.of([size // num_sites // 1024 * 1024] * num_sites)
    size = index.num_elements
    rows, logits, gradient = (
        torch.randn(count, size),
        torch.randn(num_sites, count),
        torch.randn(size),
    )
    nothing, out = rows.new_empty(0, size), torch.empty(size)
    source = torch.randn(size * (count + 1) // 2)
    target = torch.empty_like(source)
    where = (index.tile_start, index.site_tile)
    cases: dict[str, Work] = {
        "copy": lambda: target.copy_(source),
        "forward": lambda: interpolate(nothing, rows, logits, index, out=out),
        "forward into new memory": lambda: interpolate(nothing, rows, logits, index),
        "backward, frozen": lambda: reference.backward(
            gradient, nothing, rows, logits, *where, write=False
        ),
        "backward, learned": lambda: reference.backward(
            gradient, rows, nothing, logits, *where, write=True
        ),
        "naive": lambda: naive(rows, logits[0]),
    }
    row = 4 * size
    moved = {
        "copy": 2 * 4 * len(source),
        "forward": row * (count + 1),
        "forward into new memory": row * (count + 1),
        "backward, frozen": row * (count + 1),
        "backward, learned": row * (2 * count + 1),
        "naive": row * (count + 1),
    }
    found = _summary(in_turns(cases, rounds=rounds), moved)
    for one in found.values():
        one["share_of_copy"] = round(one["gb_per_s"] / found["copy"]["gb_per_s"], 3)
    return {"P": size, "K": count, "sites": num_sites, "times": found}


def _minilm_sites() -> Iterator[str]:
    """30 dense layers: five in each of six."""
    for layer in range(6):
        for name in (
            "attention.self.query",
            "attention.self.key",
            "attention.self.value",
            "attention.output.dense",
            "intermediate.dense",
        ):
            yield f"encoder.layer.{layer}.{name}"


def many_small_sites(*, rounds: int) -> dict[str, Any]:
    """30 sites, 4 experts, rank 8, MiniLM's widths: pidep, the naive expression per site,
    and PEFT.
    """
    import peft
    from transformers import BertConfig, BertModel

    config = BertConfig(
        hidden_size=384, intermediate_size=1536, num_attention_heads=12, num_hidden_layers=6
    )
    sites = list(_minilm_sites())
    shapes = [
        ((RANK, 384), (1536 if site.endswith("intermediate.dense") else 384, RANK))
        for site in sites
    ]
    index = ArenaIndex.of([a[0] * a[1] + b[0] * b[1] for a, b in shapes])
    rows, logits = (
        torch.randn(NUM_EXPERTS, index.num_elements),
        torch.randn(len(sites), NUM_EXPERTS),
    )
    nothing = rows.new_empty(0, index.num_elements)
    factors = [[(torch.randn(a), torch.randn(b)) for a, b in shapes] for _ in range(NUM_EXPERTS)]

    def site_by_site() -> list[Tensor]:
        out = []
        for site in range(len(sites)):
            alpha = torch.softmax(logits[site], 0)
            for tensor in range(2):
                out.append(sum(alpha[k] * factors[k][site][tensor] for k in range(NUM_EXPERTS)))  # type: ignore[arg-type]
        return out

    wrapped = peft.get_peft_model(
        BertModel(config, add_pooling_layer=False),
        peft.LoraConfig(r=RANK, target_modules=sites),
        "0",
    )
    for number in range(1, NUM_EXPERTS):
        wrapped.add_adapter(str(number), peft.LoraConfig(r=RANK, target_modules=sites))

    def with_peft() -> None:
        wrapped.add_weighted_adapter(
            [str(number) for number in range(NUM_EXPERTS)], [0.25] * NUM_EXPERTS, "mixed", "linear"
        )
        wrapped.delete_adapter("mixed")

    gradient = torch.randn(index.num_elements)
    learned = rows.clone().requires_grad_()

    def both_ways() -> None:
        learned.grad = None
        interpolate(learned, nothing, logits, index).backward(gradient)

    leaves = [
        [tuple(factor.clone().requires_grad_() for factor in pair) for pair in expert]
        for expert in factors
    ]

    def naive_both_ways() -> None:
        total = torch.zeros(())
        for site in range(len(sites)):
            alpha = torch.softmax(logits[site], 0)
            for tensor in range(2):
                total = (
                    total
                    + sum(alpha[k] * leaves[k][site][tensor] for k in range(NUM_EXPERTS)).sum()
                )  # type: ignore[union-attr]
        total.backward()

    cases: dict[str, Work] = {
        "interpolate": lambda: interpolate(nothing, rows, logits, index),
        "naive, site by site": site_by_site,
        "PEFT add_weighted_adapter (linear)": with_peft,
        "interpolate, forward and backward": both_ways,
        "naive, forward and backward": naive_both_ways,
    }
    found = _summary(
        in_turns(cases, rounds=rounds), {"interpolate": 4 * index.num_elements * (NUM_EXPERTS + 1)}
    )
    base = found["interpolate"]["p50_ms"]
    speedups = {
        name: round(one["p50_ms"] / base, 2)
        for name, one in found.items()
        if name in list(cases)[1:3]
    }
    speedups["naive, forward and backward"] = round(
        found["naive, forward and backward"]["p50_ms"]
        / found["interpolate, forward and backward"]["p50_ms"],
        2,
    )
    return {
        "sites": len(sites),
        "K": NUM_EXPERTS,
        "rank": RANK,
        "P": index.num_elements,
        "times": found,
        "speedup": speedups,
    }


def claims_of(large: list[dict[str, Any]], small: Mapping[str, Any]) -> list[Claim]:
    """One claim for every direction and size."""
    claims: list[Claim] = []
    for found in large:
        for name in ("forward", "forward into new memory", "backward, frozen", "backward, learned"):
            share = found["times"][name]["share_of_copy"]
            size = f"P = {found['P'] / 2**20:.0f}M, K = {found['K']}, {found['sites']} sites"
            title = f"interpolate on the CPU, {name}, {size}: share of memcpy bandwidth"
            claims.append(
                {
                    "claim": title,
                    "target": f">= {SHARE_TARGET}",
                    "measured": share,
                    "met": share >= SHARE_TARGET,
                }
            )
    for name, speedup in small["speedup"].items():
        title = (
            f"interpolate on the CPU, {small['sites']} sites, {small['K']} experts, rank "
            f"{small['rank']}: times as fast as {name}"
        )
        claims.append(
            {
                "claim": title,
                "target": f">= {FASTER_TARGET:g}",
                "measured": speedup,
                "met": speedup >= FASTER_TARGET,
            }
        )
    return claims


def main(arguments: list[str] | None = None) -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bench_kernels_cpu",
        description=__doc__.partition("\n")[0] if __doc__ else None,
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="where kernels-cpu.json goes")
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args(arguments)
    torch.manual_seed(0)
    with torch.no_grad():
        large = [
            bandwidth(size, count, num_sites=sites, rounds=given.rounds)
            for size, count, sites in ((2**24, 4, 1), (2**24, 4, 30), (2**24, 16, 1), (2**26, 4, 1))
        ]
    small = many_small_sites(rounds=given.rounds)
    raw = {
        "how": (
            "wall time in turns, medians; bytes are what must be moved: each expert and gradient "
            "read once, each result written once"
        ),
        "threads": torch.get_num_threads(),
        "load_average": list(os.getloadavg()),
        "large": large,
        "small": small,
    }
    command = shlex.join(
        [
            "python",
            "-m",
            "benchmarks.bench_kernels_cpu",
            *(sys.argv[1:] if arguments is None else arguments),
        ]
    )
    claims = claims_of(large, small)
    for claim in claims:
        print(
            f"{'met    ' if claim['met'] else 'NOT MET'}  {claim['claim']}: {claim['measured']} "
            f"(target {claim['target']})"
        )
    print(
        write_result("kernels-cpu", command=command, raw=raw, claims=claims, folder=given.results)
    )


if __name__ == "__main__":
    main()
