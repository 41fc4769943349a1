"""The tables of docs/concepts/prediction.md, from `results/prediction.json`.

python -m benchmarks.prediction_table
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from benchmarks.record import RESULTS

__all__ = ["every_table", "interval_table", "main", "mixture_table", "noise_table", "table"]


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


def noise_table(raw: Mapping[str, Any]) -> str:
    """The reliability of every kind of transfer, and the ceiling that follows."""
    lines = [
        "| transfer | reliability over test rows | over seeds | over both | ceiling |",
        "| --- | --- | --- | --- | --- |",
    ]
    for kind, found in raw["reliability"].items():
        full = [
            f"{found[over]['full']:.2f}" if over in found else "–"
            for over in ("rows", "seeds", "both")
        ]
        ceiling = found.get("both", found["rows"])["ceiling"]
        lines.append(f"| {kind} | {' | '.join(full)} | {ceiling:.2f} |")
    return "\n".join(lines)


def mixture_table(raw: Mapping[str, Any], part: str = "top3_mixture") -> str:
    """What three helpers add together, and how much more than three at random.

    Args:
        part: `top3_mixture` for the uniform mixture, `top3_pi` for π.
    """
    lines = ["| transfer | helpers by | gain | above random |", "| --- | --- | --- | --- |"]
    for kind, found in raw[part].items():
        for name, gain in found["gain"].items():
            more = found["above_random"].get(name)
            cells = [_in_points(gain), "" if more is None else _in_points(more)]
            lines.append(f"| {kind} | {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def interval_table(raw: Mapping[str, Any]) -> str:
    """How often the intervals of a pool's predictions cover the gains of a new target."""
    lines = ["| transfer | asked | covered | half width | mean error |"]
    lines.append("| --- | --- | --- | --- | --- |")
    for kind, found in raw["intervals"].items():
        shares = [f"{100 * found[name]:.0f} %" for name in ("asked", "covered")]
        points = [f"{100 * found[name]:.1f}" for name in ("half_width", "mean_error")]
        lines.append(f"| {kind} | {' | '.join([*shares, *points])} |")
    return "\n".join(lines)


def every_table(raw: Mapping[str, Any]) -> list[str]:
    """All tables of a set of tasks, in the order of the page."""
    mixed = [mixture_table(raw, part) for part in ("top3_mixture", "top3_pi") if raw[part]]
    return [noise_table(raw), table(raw), *mixed, interval_table(raw)]


def _in_points(figure: Mapping[str, Any]) -> str:
    low, high = (_signed(100 * bound, 1) for bound in figure["interval_95"])
    return f"{_signed(100 * figure['value'], 1)} ({low} to {high})"


def _with(raw: Mapping[str, Any], kinds: list[str], name: str) -> list[Any]:
    return [raw["figures"][kind] for kind in kinds if name in raw["figures"][kind]]


def _rank(figures: Mapping[str, Any] | None) -> str:
    if figures is None:
        return "–"
    found = figures["spearman"]
    low, high = found["interval_95"]
    share = f"{_signed(100 * found.get('share_of_ceiling', 0.0), 0)} %"
    return f"{_signed(found['value'])} ({_signed(low)} to {_signed(high)}), {share}"


def _signed(value: float, digits: int = 2) -> str:
    return f"{value:.{digits}f}".replace("-", "−")


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
    """Print all of them, those of the packaged tasks last."""
    raw = json.loads((RESULTS / "prediction.json").read_text(encoding="utf-8"))["raw"]
    print(*every_table(raw), *every_table(raw["packaged"]), sep="\n\n")


if __name__ == "__main__":
    main()
