"""The run folder: the format of what `pidep tune` writes, its writer and its reader. No torch.

config.yaml       the settings, as JSON (which is YAML)
task.json         the task
own/              the own expert, with its task embedding; not in a zero-shot run
expert/           the result: the mixture as one expert, or the own expert
mixture/          the mixture by reference to its parts, where one expert is larger than they are
metrics.json      the metric of each method on the test rows, with its 95 % interval
alpha.json        α of the mixture by site
similarity.json   the neighbours and their similarities
provenance.json   digests, versions, learning curves, seconds
result.json       the summary; written last, so a folder with it is complete
checkpoint/       what `--resume` needs; not read here
"""

from __future__ import annotations

import json
import math
import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pidep import __version__
from pidep.errors import UsageError
from pidep.experts.folder import Expert, read_expert
from pidep.experts.mixed import MixedExpert
from pidep.experts.mixture_folder import holds_mixture, write_mixture
from pidep.files.atomic_write import write_json, write_text
from pidep.files.bounded_read import parse_json, read_json
from pidep.settings import fault_of, read_yaml
from pidep.similarity.estimate_names import recorded_by
from pidep.similarity.learned import PredictedGain
from pidep.tasks.metrics.intervals import Interval
from pidep.tuning.under_floors import under_floors

if TYPE_CHECKING:
    from pidep.similarity.measures import Neighbour
    from pidep.tasks.data import Split
    from pidep.tasks.lengths import TextLengths
    from pidep.tasks.task import Task
    from pidep.training.loop import TrainReport
    from pidep.tuning.class_priors import ClassPriors
    from pidep.tuning.job import Job

__all__ = [
    "KEPT",
    "METHODS",
    "RUN_FILES",
    "Alpha",
    "Phase",
    "Run",
    "Step",
    "TuneResult",
    "is_run_folder",
    "read_run",
    "recorded_metric",
    "run_task",
    "write_by_reference",
    "write_run",
    "write_task_record",
]

_TASK = "task.json"

METHODS = {
    "majority": "majority class",
    "backbone": "bare backbone",
    "probe": "logistic probe",
    "own_expert": "own expert",
    "own_tuned": "own expert, high rate",
    "nearest": "nearest expert",
    "uniform": "uniform mixture",
    "pi_plain": "π, training's priors",
    "own_priors": "own expert, class priors",
    "pi": "π (interpolated)",
    "zero_shot": "zero-shot mixture",
}
"""Keys of `metrics.json` and their names for people, in the order of every table."""
KEPT = {
    "own_expert": "own expert",
    "own_tuned": "own expert, high rate",
    "own_priors": "own expert, class priors",
    "pi": "π",
    "zero_shot": "zero-shot mixture",
}
"""Methods whose experts a run keeps, and short names for them."""
_FILES = ("result", "task", "metrics", "alpha", "similarity", "provenance")
RUN_FILES = ("config.yaml", *(f"{name}.json" for name in _FILES))
"""Files that a run writes beside its experts."""


@dataclass(frozen=True)
class TuneResult:
    """The summary of a run; `run` is its folder."""

    run: Path
    name: str
    digest: str
    """Of the result, as a bank serves it: of the mixture by reference where there is one."""
    metric: str
    metrics: dict[str, float]
    neighbours: list[Neighbour]
    seconds: float
    intervals: dict[str, Interval | None] = field(default_factory=dict)
    """The 95 % interval of each metric, by method."""
    cut_texts: TextLengths | None = None
    """How many texts were cut; None where no row has a text."""
    class_priors: ClassPriors | None = None
    """What the answers are decided for; None for a run without labels."""
    neighbours_by: str | None = None
    """What chose the neighbours, a key of `ESTIMATES`; None where there are none."""
    predicted: Mapping[str, PredictedGain] = field(default_factory=dict)
    """Helper to its predicted gain, where the pool has learned to predict it."""

    def to_json(self) -> dict[str, Any]:
        """For `--json` and `result.json`."""
        return {
            "run": str(self.run),
            "name": self.name,
            "digest": self.digest,
            "metric": self.metric,
            "metrics": self.metrics,
            "intervals": _named_intervals(self.intervals),
            "neighbours": [
                {"name": near.name, "similarity": near.similarity} for near in self.neighbours
            ],
            "neighbours_by": self.neighbours_by,
            "predicted": {name: one.to_json() for name, one in self.predicted.items()},
            "seconds": self.seconds,
            "cut_texts": None if self.cut_texts is None else self.cut_texts.to_json(),
            "class_priors": None if self.class_priors is None else self.class_priors.to_json(),
            "under": under_floors(self.metrics),
        }


@dataclass(frozen=True)
class Step:
    """One point of a learning curve."""

    step: int
    loss: float
    held_out: float | None


@dataclass(frozen=True)
class Phase:
    """One phase of training."""

    name: str
    steps: int
    best_step: int
    history: tuple[Step, ...]


@dataclass(frozen=True)
class Alpha:
    """The weights of a mixture."""

    experts: tuple[str, ...]
    sites: Mapping[str, tuple[float, ...]]
    """α by site, in the order of `experts`; empty where nothing was mixed."""
    mean: tuple[float, ...]
    """`[K]`, the mean over the sites."""

    @classmethod
    def of(cls, experts: tuple[str, ...], sites: Mapping[str, list[float]]) -> Alpha:
        """The weights with their mean."""
        mean = np.mean(list(sites.values()), axis=0).tolist() if sites else [1.0]
        return cls(experts, {site: tuple(alpha) for site, alpha in sites.items()}, tuple(mean))

    def to_json(self) -> dict[str, Any]:
        """For `alpha.json`."""
        sites = {site: list(alpha) for site, alpha in self.sites.items()}
        return {"experts": self.experts, "sites": sites, "mean": list(self.mean)}


@dataclass(frozen=True)
class Run:
    """A run folder, read."""

    folder: Path
    name: str
    digest: str
    """Of the result, as a bank serves it."""
    task: dict[str, Any]
    labels: tuple[str, ...]
    config: dict[str, Any]
    metric: str
    test_rows: int
    metrics: dict[str, float]
    """By method, in the order of `METHODS`."""
    intervals: dict[str, Interval]
    """The 95 % interval of a metric, by method. Runs of early versions did not record them."""
    alpha: Alpha
    neighbours: dict[str, float]
    """Name to what `neighbours_by` found."""
    neighbours_by: str
    """What chose the neighbours, a key of `ESTIMATES`."""
    predicted: dict[str, PredictedGain]
    """Helper to its predicted gain; empty where the pool had not learned to predict it."""
    phases: tuple[Phase, ...]
    seconds: float
    seconds_by_phase: dict[str, float]
    """Empty where the run did not record them."""
    provenance: dict[str, Any]
    own: Expert | None
    """None for a zero-shot run."""
    expert: Expert

    @property
    def pool(self) -> Path | None:
        """The pool that the run was tuned with."""
        given = self.config.get("pool")
        return None if given is None else Path(str(given))

    @property
    def zero_shot(self) -> bool:
        """Whether the run read no labels."""
        return self.config.get("policy") == "zero-shot"

    @property
    def experts(self) -> dict[str, Expert]:
        """The experts that the run made, by their name for people."""
        own = {} if self.own is None else {"own expert": self.own}
        # Without neighbours the result is the own expert, which has no second name.
        if self.own is not None and self.own.digest == self.expert.digest:
            return own
        mixed = "zero_shot" if self.zero_shot else "pi"
        # Without neighbours, class priors or another learning rate make another expert.
        alone = "own_priors" if self.expert.label_bias else "own_tuned"
        return {**own, KEPT[mixed if self.neighbours else alone]: self.expert}

    @property
    def decision(self) -> dict[str, Any] | None:
        """The decision of interpolation; None without neighbours."""
        found = self.expert.provenance.get("decision")
        return found if isinstance(found, dict) else None

    @property
    def mixture_of(self) -> dict[str, str]:
        """Name to digest of each expert in the mixture."""
        found = self.expert.provenance.get("mixture_of")
        return dict(found) if isinstance(found, dict) else {}


def is_run_folder(folder: Path) -> bool:
    """Whether a run was finished in this folder."""
    return (folder / "result.json").is_file()


# Writing.


def write_run(
    job: Job,
    result: TuneResult,
    alpha: Alpha,
    reports: Mapping[str, TrainReport],
    seconds: Mapping[str, float],
) -> None:
    """Write all files of a run folder except the experts, which must be there already."""
    out, metrics = job.out, result.metrics
    test_rows = len(job.data.test.rows)
    write_text(out / "config.yaml", json.dumps(job.config.model_dump(mode="json"), indent=2) + "\n")
    write_task_record(out, job.task)
    write_json(out / "alpha.json", alpha.to_json())
    write_json(out / "similarity.json", {near.name: near.similarity for near in result.neighbours})
    facts = {"metric": result.metric, "test_rows": test_rows}
    intervals = {"intervals": _named_intervals(result.intervals)}
    # The metrics first: they are what a person looks for.
    write_json(out / "metrics.json", {**facts, **metrics, **intervals})
    write_json(out / "provenance.json", _provenance(job, result, reports, seconds))
    # Last: `is_run_folder` takes this file for the sign of a complete run.
    write_json(out / "result.json", result.to_json())


def write_by_reference(out: Path, mixture: MixedExpert | None) -> None:
    """Write the run's mixture by reference, or remove that of an earlier run."""
    place = out / "mixture"
    if mixture is not None:
        write_mixture(mixture, place)
    elif holds_mixture(place):
        shutil.rmtree(place)


def write_task_record(folder: Path, task: Task) -> None:
    """Write the task of a run, or of an expert in a pool, as `run_task` reads it."""
    write_json(folder / _TASK, task.model_dump(mode="json"))


def _provenance(
    job: Job,
    result: TuneResult,
    reports: Mapping[str, TrainReport],
    seconds: Mapping[str, float],
) -> dict[str, Any]:
    from pidep.adapters.places import device_name
    from pidep.tasks.data import data_digest

    backbone = job.scorer.backbone
    parameters = sum(parameter.numel() for parameter in backbone.model.parameters())
    return {
        "backbone": {
            "name": backbone.name,
            "digest": backbone.digest,
            "parameters": parameters,
        },
        "data": {
            "train": data_digest(job.train),
            "test": data_digest(job.data.test),
            "train_rows": len(job.train.rows),
        },
        "cut_texts": None if job.cut_texts is None else job.cut_texts.to_json(),
        "class_priors": None if result.class_priors is None else result.class_priors.to_json(),
        "phases": {
            phase: {
                "steps": report.steps,
                "best_step": report.best_step,
                "validation_loss": report.validation_loss,
                "history": report.history,
            }
            for phase, report in reports.items()
        },
        "versions": {name: version(name) for name in ("torch", "transformers", "numpy")}
        | {"pidep": __version__},
        "python": platform.python_version(),
        "device": device_name(job.scorer.backbone.model),
        "seconds": result.seconds,
        "seconds_by_phase": dict(seconds),
    }


# Reading.


def read_run(folder: Path) -> Run:
    """A run folder, with its experts.

    Raises:
        UsageError: the folder is no run folder, or a file in it is missing or malformed.
        ExpertError: an expert in it is damaged.
    """
    if not is_run_folder(folder):
        raise UsageError(
            f"{folder}: no run folder (it holds no result.json); give the folder pidep tune wrote"
        )
    files = {name: read_json(folder / f"{name}.json") for name in _FILES}
    config = _read_config(folder / "config.yaml")
    own = None if config.get("policy") == "zero-shot" else read_expert(folder / "own")
    expert = read_expert(folder / "expert")
    try:
        return _parse(folder, files, config, own, expert)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UsageError(
            f"{folder}: a file of the run is malformed ({type(error).__name__}: {error}); "
            "run pidep tune again"
        ) from error


def run_task(folder: Path) -> Task | None:
    """The task of a run folder, or of an expert in a pool; None where the folder has none.

    Raises:
        UsageError: its file is damaged.
    """
    from pidep.tasks.task import Task

    path = folder / _TASK
    if not path.is_file():
        return None
    try:
        return Task.model_validate(parse_json(path.read_bytes()))
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UsageError(
            f"{path}: damaged ({reason}); give `task`, or run pidep tune again"
        ) from error


def recorded_metric(folder: Path, rows: Split) -> float | None:
    """The test metric of a run's expert; None where it was measured on other rows, or not at all.

    Raises:
        ExpertError: a file of the run is not readable.
    """
    from pidep.tasks.data import data_digest

    files = [folder / f"{name}.json" for name in ("metrics", "provenance")]
    if not all(path.is_file() for path in files):
        return None
    metrics, provenance = map(read_json, files)
    if (provenance.get("data") or {}).get("test") != data_digest(rows):
        return None
    measured = [metrics[method] for method in METHODS if method in metrics]
    # The last one is the run's result: helpers and own experts come before their mixture.
    return _finite(measured[-1]) if measured else None


def _read_config(path: Path) -> dict[str, Any]:
    config = read_yaml(path)
    if not isinstance(config, dict):
        raise UsageError(f"{path}: expected a mapping of settings, found {type(config).__name__}")
    if fault := fault_of(config):
        raise UsageError(f"{path}: {fault}")
    return config


def _parse(
    folder: Path,
    files: Mapping[str, dict[str, Any]],
    config: dict[str, Any],
    own: Expert | None,
    expert: Expert,
) -> Run:
    metrics, provenance = files["metrics"], files["provenance"]
    return Run(
        folder=folder,
        name=str(files["result"]["name"]),
        # Runs of early versions did not record it.
        digest=str(files["result"].get("digest", expert.digest)),
        task=files["task"],
        labels=tuple(str(label) for label in files["task"]["labels"]),
        config=config,
        metric=str(metrics["metric"]),
        test_rows=int(metrics["test_rows"]),
        metrics={method: _finite(metrics[method]) for method in METHODS if method in metrics},
        intervals={
            str(method): _interval(*found) for method, found in metrics.get("intervals", {}).items()
        },
        alpha=_alpha(files["alpha"]),
        neighbours={str(name): _finite(value) for name, value in files["similarity"].items()},
        neighbours_by=recorded_by(files["result"], config),
        predicted={
            str(name): PredictedGain.from_json(found)
            for name, found in files["result"].get("predicted", {}).items()
        },
        phases=tuple(_phase(str(name), phase) for name, phase in provenance["phases"].items()),
        seconds=_finite(provenance["seconds"]),
        # Runs of early versions did not record it.
        seconds_by_phase={
            str(name): _finite(value)
            for name, value in provenance.get("seconds_by_phase", {}).items()
        },
        provenance=provenance,
        own=own,
        expert=expert,
    )


def _named_intervals(found: Mapping[str, Interval | None]) -> dict[str, list[float | str]]:
    """Method to low end, high end and the name of the interval; only methods that have one."""
    return {name: one.to_json() for name, one in found.items() if one}


def _interval(low: Any, high: Any, method: Any) -> Interval:
    return Interval(_finite(low), _finite(high), str(method))


def _alpha(content: Mapping[str, Any]) -> Alpha:
    experts = tuple(str(name) for name in content["experts"])
    sites = {
        str(site): tuple(float(weight) for weight in weights)
        for site, weights in content["sites"].items()
    }
    if any(len(weights) != len(experts) for weights in sites.values()):
        raise ValueError(f"alpha.json: not {len(experts)} weights at every site")
    return Alpha(experts, sites, tuple(float(weight) for weight in content["mean"]))


def _phase(name: str, phase: Mapping[str, Any]) -> Phase:
    history = tuple(
        Step(int(entry["step"]), _finite(entry["loss"]), entry.get("validation_loss"))
        for entry in phase["history"]
    )
    return Phase(name, int(phase["steps"]), int(phase["best_step"]), history)


def _finite(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"expected a finite number, found {value}")
    return number
