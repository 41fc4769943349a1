"""Which estimator tells how well one task's expert helps another task?

    python -m benchmarks.bench_prediction --out DIR

See docs/concepts/prediction.md.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.prediction_estimates import Estimates, predictions
from benchmarks.prediction_lab import Lab, Settings
from benchmarks.record import RESULTS, Claim, write_result
from benchmarks.transfer_measured import Measured, described, measure
from benchmarks.transfer_mixtures import mixture_gains
from benchmarks.transfer_ranker import left_out
from benchmarks.transfer_statistics import Figure, Matrix, statistics
from pidep.similarity.estimators import ESTIMATORS

__all__ = ["Settings", "claims_of", "goals_of", "main"]

CHOOSING = ("fisher", "trial", "h-score")
"""Estimators that `pidep tune` can choose helpers by; their choices are mixed and measured."""

Figures = Mapping[str, Figure]
"""Statistic to figure, of one estimator."""


def claims_of(figures: Mapping[str, Figures]) -> list[Claim]:
    """Claims about the paper's estimator: transfers into mixtures of the fewest shots."""
    fisher, text, batch, random = (
        figures[name] for name in ("fisher", "text", "fisher (batch_squared)", "random")
    )
    gain = {
        "random": random["regret"] - fisher["regret"],
        "text": text["regret"] - fisher["regret"],
        "batch": fisher["spearman"] - batch["spearman"],
    }
    rank = fisher["spearman"]
    return [
        _claim(
            "Spearman of predicted similarity with measured transfer",
            "> 0, 95 % interval above 0",
            str(rank),
            rank.interval[0] > 0,
        ),
        _claim(
            "regret of the top-1 choice, accuracy: Fisher below a random choice",
            f"< {random['regret'].value:.4f}",
            f"{fisher['regret'].value:.4f}; better by {gain['random']}",
            gain["random"].value > 1e-9,
        ),
        _claim(
            "regret of the top-1 choice, accuracy: Fisher at most that of text-embedding "
            "similarity",
            f"<= {text['regret'].value:.4f}",
            f"{fisher['regret'].value:.4f}; better by {gain['text']}",
            gain["text"].value >= 0,
        ),
        _claim(
            "Spearman: per-sample Fisher at least the authors' batch-squared Fisher",
            f">= {batch['spearman'].value:.3f}",
            f"{rank.value:.3f}; better by {gain['batch']}",
            gain["batch"].value >= 0,
        ),
    ]


def goals_of(figures: Mapping[str, Figures], *, ceiling: float, shots: int) -> list[Claim]:
    """Claims about the best estimator, whichever it is. It is chosen on these very figures."""
    best = max(figures, key=lambda name: figures[name]["spearman"].value)
    rank, regret = figures[best]["spearman"], figures[best]["regret"]
    needed = min(0.55, 0.8 * ceiling)
    above = {name: rank - figures[name]["spearman"] for name in ("fisher", "trial", "text")}
    return [
        _claim(
            f"Spearman of the best of {len(figures) - 1} estimators at {shots} shots",
            f">= {needed:.3f} (0.55, or 0.8 of the noise ceiling {ceiling:.3f})",
            f"{best}: {rank}",
            rank.value >= needed,
        ),
        _claim(
            f"regret of the top-1 choice of that estimator at {shots} shots, accuracy",
            "<= 0.008",
            f"{best}: {regret}",
            regret.value <= 0.008,
        ),
        *(
            _claim(
                f"Spearman of that estimator above {name}'s at {shots} shots",
                "> 0, 95 % interval above 0",
                f"{best}: better by {more}",
                more.interval[0] > 0,
            )
            for name, more in above.items()
        ),
    ]


def mixture_claims(mixed: Mapping[str, Figure], *, shots: int) -> list[Claim]:
    """Claims about the three helpers that each estimator of `pidep tune` chooses."""
    above = {name: mixed[name] - mixed["random"] for name in CHOOSING}
    return [
        _claim(
            f"accuracy of the uniform mixture with three helpers by {name} at {shots} shots, above "
            "three at random",
            ">= 0.01",
            f"{mixed[name].value:.4f} against {mixed['random'].value:.4f}; better by {more}",
            more.value >= 0.01,
        )
        for name, more in above.items()
    ]


def _claim(claim: str, target: str, measured: str, met: bool) -> Claim:
    return {"claim": claim, "target": target, "measured": measured, "met": bool(met)}


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


def _settings(arguments: list[str] | None) -> tuple[Settings, Path, Path]:
    """Settings, the folder of the lab, and that of the result."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bench_prediction", description=__doc__
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="folder of experts, embeddings and evaluations; a run goes on from it",
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
    for name in ("shots", "seeds", "mixture_shots"):
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=int,
            nargs="+",
            default=list(getattr(defaults, name)),
        )
    given = vars(parser.parse_args(arguments))
    out, results = given.pop("out"), given.pop("results")
    settings = Settings(
        **{
            name: tuple(value) if isinstance(value, list) else value
            for name, value in given.items()
        }
    )
    return settings, out, results


def main(arguments: list[str] | None = None) -> None:
    """Measure what the folder lacks, and write the result."""
    settings, out, results = _settings(arguments)
    torch.set_num_threads(1)
    lab = Lab(settings, out)
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
        with lab.phase("mixtures"):
            mixed = {
                shots: mixture_gains(
                    lab, full, {name: predicted[shots][name] for name in CHOOSING}, shots=shots
                )
                for shots in settings.mixture_shots
            }
    names = [task.name for task in tasks]
    for shots, by in predicted.items():
        features = {name: by[name] for name in ESTIMATORS}
        forward = {name: by[name] for name, one in ESTIMATORS.items() if not one.cost.backward}
        transfer = measured.of(shots).mean
        by |= left_out(features, transfer, names, called="ranker")
        by |= left_out(forward, transfer, names, called="ranker (no backward pass)")
    fewest = min(settings.shots)
    figures = {
        kind: {name: statistics(values, transfer.mean) for name, values in predicted[shots].items()}
        # A helper alone is predicted from the fewest shots.
        for shots, (kind, transfer) in zip(
            (*settings.shots, fewest), measured.transfers.items(), strict=True
        )
    }
    raw = {
        "settings": asdict(settings),
        "tasks": described(lab, measured),
        "cost": {name: asdict(one.cost) for name, one in ESTIMATORS.items()},
        "reliability": {
            kind: {over: one.to_json() for over, one in transfer.ceiling.items()}
            for kind, transfer in measured.transfers.items()
        },
        "figures": {
            kind: {
                name: _json(by, measured.transfers[kind].noise_ceiling)
                for name, by in every.items()
            }
            for kind, every in figures.items()
        },
        "top3_mixture": {
            f"{shots} shots": {
                "gain": {name: figure.to_json() for name, figure in found.items()},
                "above_random": {
                    name: (found[name] - found["random"]).to_json() for name in CHOOSING
                },
            }
            for shots, found in mixed.items()
        },
        "pairs": _pairs(lab, measured, predicted),
        "cpu_seconds": lab.total_seconds(),
    }
    command = shlex.join(
        [
            "python",
            "-m",
            "benchmarks.bench_prediction",
            *(sys.argv[1:] if arguments is None else arguments),
        ]
    )
    claims = claims_of(figures[f"{fewest} shots"])
    for shots in settings.shots:
        kind = f"{shots} shots"
        claims += goals_of(
            figures[kind], ceiling=measured.transfers[kind].noise_ceiling, shots=shots
        )
    for shots, found in mixed.items():
        claims += mixture_claims(found, shots=shots)
    print(write_result("prediction", command=command, raw=raw, claims=claims, folder=results))


if __name__ == "__main__":
    main()
