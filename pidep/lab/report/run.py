"""A run folder as it lies on the disk: read and checked before anything is drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pidep.errors import UsageError
from pidep.experts.folder import Expert, read_expert
from pidep.files.tensor_file import read_json
from pidep.tuning.run_folder import METHODS

__all__ = ["METHODS", "Alpha", "Phase", "Run", "Step", "num_parameters", "read_run"]


@dataclass(frozen=True)
class Step:
    """One entry of a learning curve."""

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
    sites: dict[str, tuple[float, ...]]
    mean: tuple[float, ...]


@dataclass(frozen=True)
class Run:
    """Everything `pidep tune` wrote about a run."""

    folder: Path
    name: str
    task: dict[str, Any]
    labels: tuple[str, ...]
    config: dict[str, Any]
    metric: str
    test_rows: int
    metrics: dict[str, float]
    """By method, in the order of `METHODS`."""
    alpha: Alpha
    neighbours: dict[str, float]
    phases: tuple[Phase, ...]
    seconds: float
    seconds_by_phase: dict[str, float]
    """Empty where the run did not record them."""
    provenance: dict[str, Any]
    own: Expert | None
    """None of a run that read no labels."""
    expert: Expert

    @property
    def pool(self) -> Path | None:
        """The pool it was tuned with."""
        given = self.config.get("pool")
        return None if given is None else Path(str(given))

    @property
    def zero_shot(self) -> bool:
        """Whether it read no labels."""
        return self.config.get("policy") == "zero-shot"

    @property
    def experts(self) -> dict[str, Expert]:
        """What the run made, by the name people see."""
        own = {} if self.own is None else {"own expert": self.own}
        if self.own is not None and self.own.digest == self.expert.digest:
            return own
        return {**own, ("zero-shot mixture" if self.zero_shot else "π"): self.expert}

    @property
    def decision(self) -> dict[str, Any] | None:
        """What interpolation decided; None without neighbours."""
        found = self.expert.provenance.get("decision")
        return found if isinstance(found, dict) else None

    @property
    def mixture_of(self) -> dict[str, str]:
        """Expert to its digest, as mixed."""
        found = self.expert.provenance.get("mixture_of")
        return dict(found) if isinstance(found, dict) else {}


def num_parameters(expert: Expert) -> int:
    """Numbers an expert holds at its sites."""
    return sum(array.size for tensors in expert.sites.values() for array in tensors.values())


def read_run(folder: Path) -> Run:
    """Read a run folder.

    Raises:
        UsageError: it is none, or a file in it is missing or malformed.
        ExpertError: an expert in it is damaged.
    """
    if not (folder / "result.json").is_file():
        raise UsageError(f"{folder}: no run folder (it holds no result.json); give the folder pidep tune wrote")
    files = {name: read_json(folder / f"{name}.json") for name in ("result", "task", "metrics", "alpha", "similarity", "provenance")}
    config = _read_config(folder / "config.yaml")
    own = None if config.get("policy") == "zero-shot" else read_expert(folder / "own")
    expert = read_expert(folder / "expert")
    try:
        return _parse(folder, files, config, own, expert)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(f"{folder}: a file of the run is malformed ({type(error).__name__}: {error}); run pidep tune again") from error


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"{path}: not readable as YAML ({' '.join(str(error).split())})") from error
    if not isinstance(config, dict):
        raise UsageError(f"{path}: expected a mapping of settings, found {type(config).__name__}")
    return config


def _parse(folder: Path, files: Mapping[str, dict[str, Any]], config: dict[str, Any], own: Expert | None, expert: Expert) -> Run:
    metrics, alpha, provenance = files["metrics"], files["alpha"], files["provenance"]
    experts = tuple(str(name) for name in alpha["experts"])
    sites = {str(site): tuple(float(weight) for weight in weights) for site, weights in alpha["sites"].items()}
    if any(len(weights) != len(experts) for weights in sites.values()):
        raise ValueError(f"alpha.json: not {len(experts)} weights at every site")
    return Run(
        folder=folder,
        name=str(files["result"]["name"]),
        task=files["task"],
        labels=tuple(str(label) for label in files["task"]["labels"]),
        config=config,
        metric=str(metrics["metric"]),
        test_rows=int(metrics["test_rows"]),
        metrics={method: _finite(metrics[method]) for method in METHODS if method in metrics},
        alpha=Alpha(experts, sites, tuple(float(weight) for weight in alpha["mean"])),
        neighbours={str(name): _finite(value) for name, value in files["similarity"].items()},
        phases=tuple(_phase(str(name), phase) for name, phase in provenance["phases"].items()),
        seconds=_finite(provenance["seconds"]),
        seconds_by_phase={str(name): _finite(value) for name, value in provenance.get("seconds_by_phase", {}).items()},
        provenance=provenance,
        own=own,
        expert=expert,
    )


def _phase(name: str, phase: Mapping[str, Any]) -> Phase:
    history = tuple(Step(int(entry["step"]), _finite(entry["loss"]), entry.get("validation_loss")) for entry in phase["history"])
    return Phase(name, int(phase["steps"]), int(phase["best_step"]), history)


def _finite(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"expected a finite number, found {value}")
    return number
