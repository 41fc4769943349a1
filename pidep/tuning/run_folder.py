"""A run folder: what a run found, and how it is written."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from pidep import __version__
from pidep.experts.folder import Expert, read_expert
from pidep.files.atomic_write import write_json, write_text
from pidep.similarity.measures import Neighbour
from pidep.tasks.data import data_digest
from pidep.training.loop import TrainReport
from pidep.tuning.job import Job

__all__ = ["METHODS", "Laps", "Mixed", "TuneResult", "run_expert", "write_run"]

METHODS = {
    "backbone": "bare backbone",
    "own_expert": "own expert",
    "own_tuned": "own expert, trained harder",
    "nearest": "nearest expert",
    "uniform": "uniform mixture",
    "pi": "π (interpolated)",
    "zero_shot": "zero-shot mixture",
}
"""What `metrics` can hold, in the order of every table."""


@dataclass(frozen=True)
class TuneResult:
    """What a run found; `run` is its folder."""

    run: Path
    name: str
    digest: str
    metric: str
    metrics: dict[str, float]
    neighbours: list[Neighbour]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "run": str(self.run),
            "name": self.name,
            "digest": self.digest,
            "metric": self.metric,
            "metrics": self.metrics,
            "neighbours": [{"name": near.name, "similarity": near.similarity} for near in self.neighbours],
            "seconds": self.seconds,
        }


class Laps:
    """Seconds by phase."""

    def __init__(self) -> None:
        self._last = time.monotonic()
        self.seconds: dict[str, float] = {}

    def lap(self, phase: str) -> None:
        """The time since the last lap was this phase's."""
        now = time.monotonic()
        self.seconds[phase] = round(self.seconds.get(phase, 0.0) + now - self._last, 3)
        self._last = now


@dataclass(frozen=True)
class Mixed:
    """Who was mixed, and how."""

    experts: tuple[str, ...]
    alphas: dict[str, list[float]]
    """α by site, in the order of `experts`; empty where nothing was mixed."""

    def to_json(self) -> dict[str, Any]:
        """For `alpha.json`."""
        mean = np.mean(list(self.alphas.values()), axis=0).tolist() if self.alphas else [1.0]
        return {"experts": self.experts, "sites": self.alphas, "mean": mean}


def write_run(job: Job, result: TuneResult, mixed: Mixed, reports: Mapping[str, TrainReport], seconds: Mapping[str, float]) -> None:
    """Everything beside the experts."""
    out = job.out
    write_text(out / "config.yaml", json.dumps(job.config.model_dump(mode="json"), indent=2) + "\n")
    write_json(out / "task.json", job.task.model_dump(mode="json"))
    write_json(out / "alpha.json", mixed.to_json())
    write_json(out / "similarity.json", {near.name: near.similarity for near in result.neighbours})
    write_json(out / "metrics.json", {"metric": result.metric, "test_rows": len(job.data.test.rows), **result.metrics})
    write_json(out / "provenance.json", _provenance(job, result, reports, seconds))
    write_json(out / "result.json", result.to_json())


def _provenance(job: Job, result: TuneResult, reports: Mapping[str, TrainReport], seconds: Mapping[str, float]) -> dict[str, Any]:
    backbone = job.scorer.backbone
    parameters = sum(parameter.numel() for parameter in backbone.model.parameters())
    return {
        "backbone": {"name": backbone.name, "digest": backbone.digest, "parameters": parameters},
        "data": {"train": data_digest(job.train), "test": data_digest(job.data.test), "train_rows": len(job.train.rows)},
        "phases": {
            phase: {
                "steps": report.steps,
                "best_step": report.best_step,
                "validation_loss": report.validation_loss,
                "history": report.history,
            }
            for phase, report in reports.items()
        },
        "versions": {name: version(name) for name in ("torch", "transformers", "numpy")} | {"pidep": __version__},
        "python": platform.python_version(),
        "seconds": result.seconds,
        "seconds_by_phase": dict(seconds),
    }


def run_expert(folder: Path) -> Expert:
    """The expert of a run folder, or of an expert folder."""
    return read_expert(folder / "expert" if (folder / "expert" / "expert.json").is_file() else folder)
