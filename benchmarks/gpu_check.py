"""Every kernel on a real GPU: correctness first, then speed.

    make gpu-check   # python3 -m benchmarks.gpu_check; needs torch, OpenAI Triton, transformers

Writes `benchmarks/results/kernels-gpu.json` in under 8 minutes, and where ONNX Runtime has CUDA
also `serving-gpu.json` (`benchmarks.gpu.serving`). Nothing is timed unless everything is correct.
Times are medians of `triton.testing.do_bench`, which flushes the cache between runs. Bandwidth
counts the necessary bytes: each expert and gradient read once, each result written once.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.record import RESULTS, Claim, write_result
from pidep.kernels import paths

__all__ = ["claims_of", "main", "measure"]

BANDWIDTH_SHARE = 0.9
EAGER_TARGET, COMPILE_TARGET = 3.0, 1.2
FOLD_TARGET = 1.2
STEP_TARGET = 1.1
Found = Sequence[Mapping[str, Any]]


def claims_of(checks: Found, interpolations: Found, folds: Found, steps: Found) -> list[Claim]:
    """Claims of the kernels, on this GPU."""
    wrong = sum(not one["right"] for one in checks)
    claims: list[Claim] = [
        {
            "claim": f"kernels that are wrong, of {len(checks)} cases",
            "target": "0",
            "measured": wrong,
            "met": wrong == 0,
        }
    ]
    for found in interpolations:
        if found["P"] >= 2**24:
            claims += _interpolation_claims(found)
    for found in folds:
        title = (
            f"lora_fold of {found['shape']} {found['dtype']}, rank {found['rank']} / one read and "
            "write of W"
        )
        claims.append(_claim(title, found["fold_over_copy"], FOLD_TARGET, at_most=True))
    for found in steps:
        for name in ("four experts, all learned", "four experts, helpers frozen"):
            title = f"training step, {found['model']}, {found['dtype']}: {name} / one expert"
            claims.append(_claim(title, found["ratio"][name], STEP_TARGET, at_most=True))
    return claims


def _interpolation_claims(found: Mapping[str, Any]) -> Iterator[Claim]:
    size = f"P = {found['P'] / 2**20:.0f}M, K = {found['K']}, {found['dtype']}"
    times = found["times"]
    for name in ("forward", "backward, learned", "backward, frozen"):
        yield _claim(
            f"interpolate {name}, {size}: share of copy bandwidth",
            times[name].get("share_of_copy", 0.0),
            BANDWIDTH_SHARE,
        )
    for direction, mine in (("forward", "forward"), ("backward", "backward, learned")):
        for other, target in (("eager", EAGER_TARGET), ("compiled", COMPILE_TARGET)):
            beside = times.get(f"{other} {direction}", {})
            if "p50_ms" in beside and "p50_ms" in times[mine]:
                ratio = round(beside["p50_ms"] / times[mine]["p50_ms"], 2)
                yield _claim(
                    f"interpolate {direction}, {size}: times as fast as torch {other}",
                    ratio,
                    target,
                )


def _claim(title: str, measured: float, target: float, *, at_most: bool = False) -> Claim:
    met = measured <= target if at_most else measured >= target
    return {
        "claim": title,
        "target": f"{'<=' if at_most else '>='} {target:g}",
        "measured": measured,
        "met": met,
    }


def measure(say: Any, found: dict[str, Any]) -> None:
    """Everything that is timed, into `found` as it comes."""
    from benchmarks.gpu.speed import bench_fold, bench_interpolate, bench_layer
    from benchmarks.gpu.step import bench_step

    dtypes = (torch.bfloat16, torch.float32)
    for dtype in dtypes:
        for size, count in ((size, count) for size in (2**20, 2**24, 2**28) for count in (4, 16)):
            say(f"interpolate, P = {size}, K = {count}, {dtype}")
            found["interpolate"].append(bench_interpolate(size, count, dtype))
            torch.cuda.empty_cache()
        say(f"folds, layers and training steps, {dtype}")
        found["fold"] += [
            bench_fold(*shape, dtype) for shape in ((1024, 4096), (4096, 4096), (8192, 8192))
        ]
        found["layers"] += [
            bench_layer(*shape, dtype)
            for shape in ((4096, 1024, 1024), (4096, 1024, 4096), (16384, 4096, 4096))
        ]
        torch.cuda.empty_cache()
        found["step"].append(bench_step(dtype))


def main(arguments: list[str] | None = None) -> int:
    """Check, tune, measure, write."""
    parser = argparse.ArgumentParser(
        prog="python3 -m benchmarks.gpu_check",
        description=__doc__.partition("\n")[0] if __doc__ else None,
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="where kernels-gpu.json goes")
    parser.add_argument("--skip-tuning", action="store_true", help="use the launch table as it is")
    given = parser.parse_args(arguments)
    here = paths.report()
    if here.path != "fused":
        print(
            f"error: gpu-check needs an NVIDIA GPU and OpenAI Triton; here: {here.why}",
            file=sys.stderr,
        )
        return 1
    from benchmarks.gpu import serving
    from benchmarks.gpu.correctness import correctness
    from tools.tune_launches import tune_all

    began = time.perf_counter()

    def say(what: str) -> None:
        print(f"{time.perf_counter() - began:6.0f} s  {what}", file=sys.stderr, flush=True)

    torch.manual_seed(0)
    say(f"correctness on {here.device}")
    checks = correctness()
    say(f"{sum(one['right'] for one in checks)} of {len(checks)} cases right")
    found: dict[str, Any] = {name: [] for name in ("interpolate", "fold", "layers", "step")}
    settings: dict[str, Any] = {}
    ended = None
    try:
        settings = {} if given.skip_tuning else tune_all(say=say)
        measure(say, found)
    except (Exception, KeyboardInterrupt):
        # A machine that is lent for minutes: what was measured until here is kept.
        ended = traceback.format_exc()
        print(ended, file=sys.stderr)
    claims = claims_of(checks, found["interpolate"], found["fold"], found["step"])
    for claim in claims:
        print(
            f"{'met    ' if claim['met'] else 'NOT MET'}  {claim['claim']}: {claim['measured']} "
            f"(target {claim['target']})"
        )
    say(f"compiled engines here: {serving.engines()}")
    raw = {
        "engines": serving.engines(),
        "how": (
            "medians of triton.testing.do_bench; bytes are what must be moved, a copy of as many "
            "bytes is measured beside each case"
        ),
        "device": here.device,
        "cuda": torch.version.cuda,
        "seconds": round(time.perf_counter() - began, 1),
        "settings": settings,
        "ended early": ended,
        "correctness": checks,
        **found,
    }
    command = shlex.join(
        [
            "python3",
            "-m",
            "benchmarks.gpu_check",
            *(sys.argv[1:] if arguments is None else arguments),
        ]
    )
    print(
        write_result("kernels-gpu", command=command, raw=raw, claims=claims, folder=given.results)
    )
    lacks = serving.missing()
    if lacks is None:
        serving.main(["--results", str(given.results)])
    else:
        print(f"no compiled engine ran on the GPU: {lacks}")
    return 0 if ended is None and all(one["right"] for one in checks) else 1


if __name__ == "__main__":
    sys.exit(main())
