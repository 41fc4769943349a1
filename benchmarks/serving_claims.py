"""What `bench_serving` claims, from what it has measured."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks.record import Claim

__all__ = ["claims_of", "medians"]


def claims_of(raw: dict[str, Any]) -> list[Claim]:
    """What the measured parts show."""
    makers = {
        "rates": _claims_of_rates,
        "residents": _claims_of_residents,
        "swaps": _claims_of_swaps,
        "apart": _claims_apart,
    }
    return [claim for part, make in makers.items() if part in raw for claim in make(raw[part])]


def medians(times: Sequence[dict[str, float]]) -> dict[str, float]:
    """The median of each key."""
    return {key: round(statistics.median(one[key] for one in times), 2) for key in times[0]}


def _claims_of_rates(found: dict[str, Any]) -> list[Claim]:
    # A turn of each after the other: the difference of two neighbours knows little of the machine.
    added = statistics.median(
        turn["served"]["p50_ms"] - turn["in_process"]["p50_ms"]
        for turn in found["rounds"]
        if turn["served"]["connections"] == 1
    )

    over_hand = statistics.median(
        turn["served"]["p50_ms"] - turn["by_hand"]["p50_ms"]
        for turn in found["rounds"]
        if "by_hand" in turn
    )

    # Of each side the best setting, as its user would choose it.
    def best(side: str, setting: str) -> float:
        rates: dict[int, list[float]] = {}
        for turn in found["rounds"]:
            rates.setdefault(turn[side][setting], []).append(turn[side]["rows_per_s"])
        return max(statistics.median(some) for key, some in rates.items() if key > 1)

    share = best("served", "connections") / best("in_process", "rows_of_a_batch")
    return [
        _claim("ms that serving adds to p50 of one client", added, most=1.0),
        _claim(
            "ms of it over a model written by hand, without queue, limits and metrics",
            over_hand,
            most=0.5,
        ),
        _claim("rows/s when saturated, over the bank in process", share, least=0.9),
    ]


def _claims_of_residents(found: dict[str, Any]) -> list[Claim]:
    runs = found["runs"]
    answered = [medians(run["publishes"])["answered_ms"] for run in runs]
    total = [
        statistics.median(one["published_ms"] + one["answered_ms"] for one in run["publishes"])
        for run in runs
    ]
    many = runs[-1]["residents"]
    expected = found["base_mib"] + many * found["bytes_per_expert"] / 2**20
    lost = sum(_lost(run[key]) for run in runs for key in ("rate", "under_publishes"))
    claims = [
        _claim(
            f"ms from the manifest to the first new answer under load, p50, {run['residents']} "
            "residents",
            ms,
            most=40.0,
        )
        for run, ms in zip(runs, answered, strict=True)
    ]
    return [
        *claims,
        _claim(
            f"the same, {many} residents over {runs[0]['residents']}",
            answered[-1] / answered[0],
            most=1.1,
        ),
        _claim(
            "ms from the call of publish to the first new answer under load, p50",
            total[0],
            most=40.0,
        ),
        _claim(
            f"memory of the stub with {many} residents over backbone and their bytes",
            runs[-1]["memory"]["stub"] / expected,
            most=1.1,
        ),
        _claim("requests lost under Zipf traffic with replaced experts", lost, most=0),
    ]


def _claims_of_swaps(found: dict[str, Any]) -> list[Claim]:
    # The first tenth fills the arena and the allocator's pools.
    later = [one["server"] + one["stub"] for one in found["memory"][2:]]
    lost = sum(map(_lost, found["loads"]))
    answered = sum(one["requests"] for one in found["loads"])
    return [
        _claim("swaps under load, each shown by an answer", found["swaps"], least=10_000),
        _claim(f"requests lost of {answered} during {found['swaps']} swaps", lost, most=0),
        _claim(
            "memory after the last swap over that after the first tenth",
            later[-1] / later[0],
            most=1.02,
        ),
    ]


def _claims_apart(found: dict[str, Any]) -> list[Claim]:
    bank, merged, count = found["bank"], found["merged"], found["experts"]
    return [
        _claim(
            f"rows/s of the bank over a process for each of {count} experts",
            bank["rows_per_s"] / merged["rows_per_s"],
            least=1.0,
        ),
        _claim(
            f"memory of the bank over that of {count} processes",
            bank["memory"]["stub"] / merged["memory"]["stub"],
            most=1.0,
        ),
    ]


def _lost(load: dict[str, Any]) -> int:
    return int(load["not_200"] + load["socket_errors"] + load["timeouts"])


def _claim(
    what: str, found: float, *, most: float | None = None, least: float | None = None
) -> Claim:
    met = (most is None or found <= most) and (least is None or found >= least)
    target = f"≤ {most}" if most is not None else f"≥ {least}"
    return {"claim": what, "target": target, "measured": round(found, 3), "met": met}
