"""The table of docs/concepts/prediction.md, from `results/prediction.json`.

python -m benchmarks.prediction_table
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from benchmarks.record import RESULTS

__all__ = ["main", "table"]


def table(raw: Mapping[str, Any]) -> str:
    """Each estimator's rank correlation and regret at every number of shots, best first."""
    kinds = [kind for kind in raw["figures"] if kind != "zero-shot"]
    every = {name: None for kind in kinds for name in raw["figures"][kind]}

    def mean_rank(name: str) -> float:
        found = [by[name]["spearman"]["value"] for by in _with(raw, kinds, name)]
        return sum(found) / len(found)

    # What was asked at some shots only stands below, because its mean is another mean.
    whole = [name for name in every if len(_with(raw, kinds, name)) == len(kinds)]
    ranked = sorted(whole, key=mean_rank, reverse=True)
    lines = [
        f"| estimator | passes | {' | '.join(f'ρ, {kind}' for kind in kinds)} "
        f"| regret, {' / '.join(kind.split()[0] for kind in kinds)} shots |",
        "| --- | --- |" + " --- |" * (len(kinds) + 1),
    ]
    for name in [*ranked, *(name for name in every if name not in ranked)]:
        ranks = [_rank(raw["figures"][kind].get(name)) for kind in kinds]
        regrets = [_points(raw["figures"][kind].get(name)) for kind in kinds]
        passes = _passes(raw["cost"].get(name))
        lines.append(f"| {name} | {passes} | {' | '.join(ranks)} | {' / '.join(regrets)} |")
    return "\n".join(lines)


def _with(raw: Mapping[str, Any], kinds: list[str], name: str) -> list[Any]:
    return [raw["figures"][kind] for kind in kinds if name in raw["figures"][kind]]


def _rank(figures: Mapping[str, Any] | None) -> str:
    if figures is None:
        return "–"
    low, high = figures["spearman"]["interval_95"]
    return f"{_signed(figures['spearman']['value'])} ({_signed(low)} to {_signed(high)})"


def _signed(value: float) -> str:
    return f"{value:.2f}".replace("-", "−")


def _points(figures: Mapping[str, Any] | None) -> str:
    return "–" if figures is None else f"{100 * figures['regret']['value']:.1f}"


def _passes(cost: Mapping[str, int] | None) -> str:
    """`1 + 1` is a forward and a backward pass; `K` is once for each helper."""
    if cost is None:
        return ""
    parts = [f"{cost['task_forward']} + {cost['task_backward']}"] if cost["task_forward"] else []
    if cost["pair_forward"]:
        parts.append(f"K × ({cost['pair_forward']} + {cost['pair_backward']})")
    return ", ".join(parts) or "0"


def main() -> None:
    """Print the table."""
    print(table(json.loads((RESULTS / "prediction.json").read_text(encoding="utf-8"))["raw"]))


if __name__ == "__main__":
    main()
