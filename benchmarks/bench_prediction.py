"""Does the predicted similarity of two tasks tell how well one's expert helps the other?

    python -m benchmarks.bench_prediction --out DIR

See docs/concepts/prediction.md.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from benchmarks.prediction_lab import Lab, Settings
from benchmarks.record import RESULTS, Claim, write_result
from benchmarks.transfer_statistics import Figure, Matrix, statistics
from pidep.experts.folder import Expert
from pidep.similarity.fisher import FisherKind
from pidep.similarity.measures import scale_free, similarity

__all__ = ["Settings", "claims_of", "main"]


# --- the measurement ----------------------------
@dataclass(frozen=True)
class Measured:
    """Accuracies and transfers; matrices are helper by target."""

    backbone: Matrix  # [T]
    full: Matrix  # [T]
    own: Matrix  # [S, T], few shots
    mixed: Matrix  # [S, T, T], the uniform mixture of the target's few-shot expert and a helper
    alone: Matrix  # [T, T], a helper on the target

    @property
    def transfer(self) -> Matrix:
        """`[S, T, T]` accuracy gained by mixing a helper in."""
        return self.mixed - self.own[:, None, :]

    @property
    def zero_shot(self) -> Matrix:
        """`[T, T]` accuracy gained over the bare backbone by a helper alone."""
        return self.alone - self.backbone


def _measure(lab: Lab, full: Mapping[str, Expert]) -> Measured:
    tasks, seeds = lab.tasks, lab.settings.seeds
    own = {(task.name, seed): lab.expert(task, seed) for task in tasks for seed in seeds}
    size = len(tasks)
    mixed, alone = np.zeros((len(seeds), size, size)), np.zeros((size, size))
    for column, target in enumerate(tasks):
        for row, helper in enumerate(tasks):
            alone[row, column] = lab.accuracy(target, full[helper.name])
            for place, seed in enumerate(seeds):
                if row != column:
                    mixed[place, row, column] = lab.accuracy(
                        target, own[target.name, seed], full[helper.name]
                    )
    bare = np.array([lab.accuracy(task) for task in tasks])
    few = np.array([[lab.accuracy(task, own[task.name, seed]) for task in tasks] for seed in seeds])
    return Measured(bare, alone.diagonal().copy(), few, mixed, alone)


def _predict(lab: Lab, full: Mapping[str, Expert]) -> dict[str, Matrix]:
    """`[S or 1, T, T]` of every predictor."""
    tasks, seeds = lab.tasks, lab.settings.seeds
    found: dict[str, Matrix] = {}
    for kind in get_args(FisherKind):
        helpers = [lab.embedding(task, None, kind) for task in tasks]
        columns = {
            "": [[lab.embedding(task, seed, kind) for task in tasks] for seed in seeds],
            ", full data": [helpers],
        }
        for suffix, targets in columns.items():
            found[f"{kind}{suffix}"] = _compared(helpers, targets)
            free = [[scale_free(target) for target in row] for row in targets]
            found[f"{kind}, scale-free{suffix}"] = _compared(
                [scale_free(helper) for helper in helpers], free
            )
    shots = [[lab.rows(task, seed)[0].rows for task in tasks] for seed in seeds]
    means = np.array([task.mean_embedding for task in tasks])
    few = [
        [
            lab.backbone.encode(texts, max_length=lab.settings.max_length).numpy().mean(0)
            for texts in row
        ]
        for row in shots
    ]
    found["text"] = _cosines(means, means)[None]
    found["text, shots only"] = np.array(
        [_cosines(means, np.array(row, np.float64)) for row in few]
    )
    zero = [[lab.zero_shot(task, seed, full) for task in tasks] for seed in seeds]
    found["no labels"] = np.array(
        [[[similar.get(task.name, 1.0) for similar in row] for task in tasks] for row in zero]
    )
    # a tie is a uniform choice; this is its expected value
    found["random"] = np.zeros((1, len(tasks), len(tasks)))
    return found


def _compared(helpers: list[Any], targets: list[list[Any]]) -> Matrix:
    """Similarity of each helper with each target. The diagonal is not used."""
    return np.array(
        [
            [
                [1.0 if i == j else similarity(helper, target) for j, target in enumerate(row)]
                for i, helper in enumerate(helpers)
            ]
            for row in targets
        ]
    )


def _cosines(left: Matrix, right: Matrix) -> Matrix:
    a, b = (side / np.linalg.norm(side, axis=1, keepdims=True) for side in (left, right))
    return np.asarray(a @ b.T)


# --- the result ----------------------------


def claims_of(figures: Mapping[str, Mapping[str, Figure]]) -> list[Claim]:
    """Claims: transfers into few-shot mixtures, predicted from the shots alone."""
    fisher, text, batch, random = (
        figures[name] for name in ("empirical", "text", "batch_squared", "random")
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


def _claim(claim: str, target: str, measured: str, met: bool) -> Claim:
    return {"claim": claim, "target": target, "measured": measured, "met": bool(met)}


def _pairs(lab: Lab, measured: Measured, predicted: Mapping[str, Matrix]) -> list[dict[str, Any]]:
    return [
        {
            "helper": helper.name,
            "target": target.name,
            "transfer": round(float(measured.transfer[:, row, column].mean()), 5),
            "transfer_by_seed": measured.transfer[:, row, column].round(5).tolist(),
            "zero_shot_transfer": round(float(measured.zero_shot[row, column]), 5),
            "predicted_by_seed": {
                name: values[:, row, column].round(6).tolist()
                for name, values in predicted.items()
                if name != "random"
            },
        }
        for row, helper in enumerate(lab.tasks)
        for column, target in enumerate(lab.tasks)
        if row != column
    ]


def _described(lab: Lab, measured: Measured) -> list[dict[str, Any]]:
    return [
        {
            "name": task.name,
            "words": task.words,
            "train_rows": len(task.data.train.rows),
            "test_rows": len(task.data.test.rows),
            "positive": round(float(np.mean(task.data.train.labels)), 4),
            "backbone": round(float(measured.backbone[place]), 5),
            "full_data_expert": round(float(measured.full[place]), 5),
            "own_by_seed": measured.own[:, place].round(5).tolist(),
        }
        for place, task in enumerate(lab.tasks)
    ]


def main(arguments: list[str] | None = None) -> None:
    """Measure what the folder lacks, and write the result."""
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
        "shots",
        "full_steps",
        "few_steps",
        "fisher_rows",
    ):
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=int, default=getattr(defaults, name)
        )
    parser.add_argument("--seeds", type=int, nargs="+", default=list(defaults.seeds))
    given = vars(parser.parse_args(arguments))
    out, results = given.pop("out"), given.pop("results")
    settings = Settings(
        **{
            name: tuple(value) if isinstance(value, list) else value
            for name, value in given.items()
        }
    )
    torch.set_num_threads(1)
    lab = Lab(settings, out)
    with lab.backbone.cached_below(lab.sites):
        with lab.phase("texts"):
            tasks = lab.tasks
        with lab.phase("full-data experts"):
            full = {task.name: lab.expert(task, None) for task in tasks}
        with lab.phase("few-shot experts and evaluations"):
            measured = _measure(lab, full)
        with lab.phase("predictions"):
            predicted = _predict(lab, full)
    truths = {"few-shot mixture": measured.transfer.mean(0), "zero-shot": measured.zero_shot}
    figures = {
        kind: {name: statistics(values, truth) for name, values in predicted.items()}
        for kind, truth in truths.items()
    }
    raw = {
        "settings": asdict(settings),
        "tasks": _described(lab, measured),
        "pairs": _pairs(lab, measured, predicted),
        "figures": {
            kind: {
                name: {figure: value.to_json() for figure, value in by.items()}
                for name, by in every.items()
            }
            for kind, every in figures.items()
        },
        "cpu_seconds_of_this_run": lab.seconds,
    }
    command = shlex.join(
        [
            "python",
            "-m",
            "benchmarks.bench_prediction",
            *(sys.argv[1:] if arguments is None else arguments),
        ]
    )
    path = write_result(
        "prediction",
        command=command,
        raw=raw,
        claims=claims_of(figures["few-shot mixture"]),
        folder=results,
    )
    print(path)


if __name__ == "__main__":
    main()
