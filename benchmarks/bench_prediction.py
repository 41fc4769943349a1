"""Which estimator tells how well one task's expert helps another task?

    python -m benchmarks.bench_prediction --out DIR --packaged DIR

See docs/concepts/prediction.md.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.prediction_claims import (
    Figures,
    claims_of,
    goals_of,
    mixture_claims,
    packaged_claims,
    tuned_claims,
)
from benchmarks.prediction_estimates import Estimates, predictions
from benchmarks.prediction_lab import Lab, Settings
from benchmarks.prediction_packaged import PACKAGED, PackagedLab
from benchmarks.record import RESULTS, Claim, write_result
from benchmarks.transfer_measured import Measured, described, measure
from benchmarks.transfer_mixtures import mixture_gains
from benchmarks.transfer_ranker import coverage, left_out
from benchmarks.transfer_statistics import Figure, Matrix, statistics
from pidep.similarity.estimators import ESTIMATORS
from pidep.similarity.learned import FEATURES

__all__ = ["Part", "main", "measure_part"]


def _pairs(
    lab: Lab, measured: Measured, predicted: Mapping[int, Mapping[str, Matrix]]
) -> list[dict[str, Any]]:
    return [
        {
            "helper": helper.name,
            "target": target.name,
            # A text for a list of seeds: a number a line would make the file ten times as long.
            "transfer_by_seed": {
                name: _listed(transfer.by_seed[:, row, column])
                for name, transfer in measured.transfers.items()
            },
            "predicted_by_seed": {
                f"{shots} shots": {
                    name: _listed(values[:, row, column])
                    for name, values in by.items()
                    if name != "random"
                }
                for shots, by in predicted.items()
            },
        }
        for row, helper in enumerate(lab.tasks)
        for column, target in enumerate(lab.tasks)
        if row != column
    ]


def _listed(values: Matrix) -> str:
    return " ".join(f"{value:.5g}" for value in values)


def _json(figures: Figures, ceiling: float) -> dict[str, Any]:
    """Figures, and the correlations as a share of what noise in the measurement allows."""
    found: dict[str, Any] = {name: figure.to_json() for name, figure in figures.items()}
    for name in ("spearman", "spearman_by_target"):
        if ceiling > 0:
            found[name]["share_of_ceiling"] = round(figures[name].value / ceiling, 4)
    return found


def _settings(arguments: list[str] | None) -> tuple[Settings, Path, Path | None, Path]:
    """Settings, the folder of the lab, that of the packaged tasks, and that of the result."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bench_prediction", description=__doc__
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="folder of experts, embeddings and evaluations; a run goes on from it",
    )
    parser.add_argument(
        "--packaged",
        type=Path,
        help="folder for the same on the sixteen packaged tasks; without it, they are left out",
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="where prediction.json goes")
    defaults = Settings()
    parser.add_argument("--backbone", default=defaults.backbone)
    parser.add_argument("--sites", nargs="+", default=list(defaults.sites))
    for name in (
        "clusters",
        "train_rows",
        "test_rows",
        "full_steps",
        "few_steps",
        "fisher_rows",
    ):
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=int, default=getattr(defaults, name)
        )
    for name in ("shots", "seeds", "mixture_shots", "tuned_shots"):
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=int,
            nargs="+",
            default=list(getattr(defaults, name)),
        )
    given = vars(parser.parse_args(arguments))
    out, packaged, results = (given.pop(name) for name in ("out", "packaged", "results"))
    settings = Settings(
        **{
            name: tuple(value) if isinstance(value, list) else value
            for name, value in given.items()
        }
    )
    return settings, out, packaged, results


@dataclass(frozen=True)
class Part:
    """What was found on one set of tasks."""

    raw: dict[str, Any]
    figures: Mapping[str, Mapping[str, Figures]]
    """`8 shots`, or `zero-shot`, to estimator to figures."""
    ceilings: Mapping[str, float]
    mixed: Mapping[int, Mapping[str, Figure]]
    """Shots to estimator to gain of the uniform mixture with its three helpers."""
    tuned: Mapping[int, Mapping[str, Figure]]
    """The same for π."""


def measure_part(lab: Lab) -> Part:
    """Measure what the lab's folder lacks, and evaluate every estimator."""
    settings = lab.settings
    with lab.backbone.cached_below(lab.sites):
        with lab.phase("texts"):
            tasks = lab.tasks
        with lab.phase("full-data experts"):
            full = {task.name: lab.expert(task, None) for task in tasks}
        with lab.phase("few-shot experts and evaluations"):
            measured = measure(lab, full)
        with lab.phase("estimates"):
            estimates = Estimates(lab, full)
            predicted = {shots: predictions(estimates, shots) for shots in settings.shots}

        def gains(shots: int, *, tuned: bool) -> dict[str, Figure]:
            names = settings.tuned_choosing if tuned else settings.choosing
            choosing = {name: predicted[shots][name] for name in names}
            return mixture_gains(lab, full, choosing, shots=shots, tuned=tuned)

        with lab.phase("mixtures"):
            mixed = {shots: gains(shots, tuned=False) for shots in settings.mixture_shots}
        with lab.phase("π"):
            tuned = {shots: gains(shots, tuned=True) for shots in settings.tuned_shots}
    names = [task.name for task in tasks]
    intervals = {}
    asked = [ESTIMATORS[name] for name in settings.estimators]
    for shots, by in predicted.items():
        features = {one.name: by[one.name] for one in asked}
        forward = {one.name: by[one.name] for one in asked if not one.cost.backward}
        transfer = measured.of(shots).mean
        by |= left_out(features, transfer, names, called="ranker")
        by |= left_out(forward, transfer, names, called="ranker (no backward pass)")
        kept = {name: by[name] for name in FEATURES}
        by |= left_out(kept, transfer, names, called="ranker (kept)", usual=False)
        intervals[f"{shots} shots"] = coverage(kept, measured.of(shots).by_seed, names)
    # A helper alone is predicted from the fewest shots.
    shots_of = {f"{shots} shots": shots for shots in settings.shots}
    figures = {
        kind: {
            name: statistics(values, transfer.mean)
            for name, values in predicted[shots_of.get(kind, min(settings.shots))].items()
        }
        for kind, transfer in measured.transfers.items()
    }
    ceilings = {kind: transfer.noise_ceiling for kind, transfer in measured.transfers.items()}
    raw = {
        "settings": asdict(settings),
        "tasks": described(lab, measured),
        "cost": {one.name: asdict(one.cost) for one in asked},
        "reliability": {
            kind: {over: one.to_json() for over, one in transfer.ceiling.items()}
            for kind, transfer in measured.transfers.items()
        },
        "figures": {
            kind: {name: _json(by, ceilings[kind]) for name, by in every.items()}
            for kind, every in figures.items()
        },
        "intervals": intervals,
        "top3_mixture": _gains_json(mixed),
        "top3_pi": _gains_json(tuned),
        "pairs": _pairs(lab, measured, predicted),
        "cpu_seconds": lab.total_seconds(),
    }
    return Part(raw, figures, ceilings, mixed, tuned)


def _gains_json(found: Mapping[int, Mapping[str, Figure]]) -> dict[str, Any]:
    return {
        f"{shots} shots": {
            "gain": {name: figure.to_json() for name, figure in gains.items()},
            "above_random": {
                name: (figure - gains["random"]).to_json()
                for name, figure in gains.items()
                if name != "random"
            },
            "by_target": {name: _listed(figure.by_target) for name, figure in gains.items()},
        }
        for shots, gains in found.items()
    }


def _claims(part: Part, packaged: Part | None) -> list[Claim]:
    shots_of = part.raw["settings"]["shots"]
    claims = claims_of(part.figures[f"{min(shots_of)} shots"])
    for shots in shots_of:
        kind = f"{shots} shots"
        claims += goals_of(part.figures[kind], ceiling=part.ceilings[kind], shots=shots)
    for shots, found in part.mixed.items():
        claims += mixture_claims(found, shots=shots)
    if packaged is None:
        return claims
    for shots in packaged.raw["settings"]["shots"]:
        kind = f"{shots} shots"
        claims += packaged_claims(
            packaged.figures[kind], ceiling=packaged.ceilings[kind], shots=shots
        )
    for shots, found in packaged.tuned.items():
        claims += tuned_claims(found, shots=shots)
    return claims


def main(arguments: list[str] | None = None) -> None:
    """Measure what the folders lack, and write the result."""
    settings, out, packaged_out, results = _settings(arguments)
    torch.set_num_threads(1)
    part = measure_part(Lab(settings, out))
    packaged = None if packaged_out is None else measure_part(PackagedLab(PACKAGED, packaged_out))
    command = shlex.join(
        [
            "python",
            "-m",
            "benchmarks.bench_prediction",
            *(sys.argv[1:] if arguments is None else arguments),
        ]
    )
    raw = part.raw if packaged is None else {**part.raw, "packaged": packaged.raw}
    claims = _claims(part, packaged)
    print(write_result("prediction", command=command, raw=raw, claims=claims, folder=results))


if __name__ == "__main__":
    main()
