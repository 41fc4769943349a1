"""The grid of a comparison: its cells, with their rows, training settings, methods and digests."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from pidep.adapters.kinds import adapter_kind
from pidep.adapters.mixture import find_sites
from pidep.backbones.backbone import Backbone
from pidep.backbones.layer_cache import layers_below
from pidep.errors import TaskError, UsageError, did_you_mean
from pidep.experts.kinds import expert_kind
from pidep.interpolation.settings import InterpolateSettings
from pidep.lab.settings import ONLY_FOR, CompareSettings, Method
from pidep.similarity.pool import PoolEntry, read_pool
from pidep.tasks.data import Split, TaskData, data_digest, few_shot, limit, load_data
from pidep.tasks.hub import with_labels
from pidep.tasks.task import Task, load_task
from pidep.training.scorer import Scorer, scorer_for_task
from pidep.training.settings import TrainingSettings, few_shot_factor
from pidep.tuning.job import count_cut_texts, require_every_label, split_rows

__all__ = ["REVISIONS", "Grid", "Key", "Part", "Target", "cells_of", "methods_of"]

FORMAT = 1
"""Raise it when a cell measures something else for the same settings."""
REVISIONS: Mapping[Method, Mapping[str, int]] = {
    "own_tuned": {"any": 3},
    "pi": {"any": 3, "prefix": 4},
    "pi_trial": {"any": 3, "prefix": 4},
}
"""By method and kind of expert. Raise one when the method does something else with the same
settings: cells of the old revision are refused then, and never mixed with new ones."""
_DECISIVE = (
    "kind",
    "sites",
    "rank",
    "scaling",
    "steps",
    "batch_size",
    "warmup",
    "weight_decay",
    "eval_every",
    "patience",
)
"""Training settings that the digest of a cell's own expert covers by name."""


class Key(NamedTuple):
    """A cell of a grid; `shots` is None for full data."""

    kind: str
    task: str
    shots: int | None
    seed: int

    @property
    def path(self) -> Path:
        """The cell's file inside the folder of the comparison."""
        return (
            Path("cells") / self.kind / self.task / str(self.shots or "full") / f"{self.seed}.json"
        )

    def __str__(self) -> str:
        rows = f"{self.shots} shots" if self.shots else "full data"
        return f"{self.kind}, {self.task}, {rows}, seed {self.seed}"


class Part(NamedTuple):
    """Every `of`-th cell from `first` on, so that processes can share a grid."""

    first: int
    of: int

    @classmethod
    def of_text(cls, text: str) -> Part:
        """The part that `pidep compare --part` calls I/N."""
        first, _, of = text.partition("/")
        return cls(int(first), int(of))

    def share(self, keys: Sequence[Key]) -> list[Key]:
        """The keys of this part."""
        return list(keys[self.first :: self.of])


@dataclass(frozen=True)
class Target:
    """A task made ready."""

    task: Task
    data: TaskData
    scorer: Scorer

    @cached_property
    def test_digest(self) -> str:
        """SHA-256 of the test rows."""
        return data_digest(self.data.test)


def cells_of(config: CompareSettings, tasks: Sequence[str]) -> list[Key]:
    """Every cell of the grid.

    Tasks come last, so that two parts of an even number of tasks embed different texts.
    """
    columns: list[tuple[int | None, tuple[int, ...]]] = [
        (shots, config.seeds) for shots in config.shots
    ]
    if config.full:
        # Full data is slow to train, so it may have fewer seeds.
        columns.append((None, config.full_seeds or config.seeds))
    return [
        Key(kind, task, shots, seed)
        for kind in config.kinds
        for shots, seeds in columns
        for seed in seeds
        for task in tasks
    ]


def _measured(config: CompareSettings, names: Sequence[str]) -> list[str]:
    """Names of the tasks that are targets, in the order of the tasks.

    Raises:
        UsageError: `targets` has a task that is not among the tasks.
    """
    # As the task is given, or by its name.
    by_reference = dict(zip([*config.tasks, *names], [*names, *names], strict=True))
    for target in config.targets:
        if target not in by_reference:
            raise UsageError(
                f"compare: `targets` {target}: expected one of the tasks, "
                f"{', '.join(config.tasks)}{did_you_mean(target, by_reference)}"
            )
    wanted = {by_reference[target] for target in config.targets}
    return [name for name in names if name in wanted or not wanted]


def methods_of(config: CompareSettings, kind: str) -> dict[Method, dict[str, Any]]:
    """Method to its settings, for a kind of expert, in the order of the table."""
    interpolation = _interpolation(config)
    settings: dict[str, dict[str, Any]] = {
        "full": {"learning_rate": config.finetune_learning_rate, "steps": config.finetune_steps},
        "lorahub": {"budget": config.lorahub_budget, "max_rows": config.lorahub_rows},
        **{
            method: {**interpolation, "revision": of.get(kind, of["any"])}
            for method, of in REVISIONS.items()
        },
    }
    return {
        method: settings.get(method, {})
        for method in config.methods
        if kind in ONLY_FOR.get(method, (kind,))
    }


def _interpolation(config: CompareSettings) -> dict[str, Any]:
    """The settings of π that do not depend on the cell."""
    defaults = {
        found.name: found.default
        for found in fields(InterpolateSettings)
        if found.name not in ("schedule", "own_learning_rate")
    }
    for name in config.interpolation:
        if name not in defaults:
            raise UsageError(
                f"compare: interpolation: unknown setting {name!r}{did_you_mean(name, defaults)}"
            )
    return {**defaults, **config.interpolation}


class Grid:
    """A configuration on its backbone.

    Raises:
        TaskError, ExpertError, UsageError: a task, shots or sites do not exist.
    """

    def __init__(
        self, config: CompareSettings, backbone: Backbone, *, tasks: Sequence[Task] | None = None
    ) -> None:
        """Read the tasks and check that everything fits together.

        Args:
            tasks: the tasks of `config`, where they are read already.
        """
        self.config, self.backbone = config, backbone
        self.sites: dict[str, tuple[str, ...]] = {
            kind: tuple(find_sites(backbone.model, config.sites, kind=kind))
            for kind in config.kinds
        }
        self.targets: dict[str, Target] = {}
        for task in tasks or map(load_task, config.tasks):
            if task.name in self.targets:
                raise UsageError(
                    f"compare: two tasks are called {task.name!r}; give each a name of its own"
                )
            self.targets[task.name] = _target(task, config, backbone)
        self._measured = _measured(config, list(self.targets))
        self.cells = cells_of(config, self._measured)
        self._extra = {} if config.pool is None else read_pool(config.pool)
        self._settings: dict[Key, str] = {}
        for kind in config.kinds:
            if not methods_of(config, kind):
                raise UsageError(
                    f"compare: none of the methods {', '.join(config.methods)} is for experts of "
                    f"kind {kind!r}; add one, as own"
                )
        for kind in config.kinds:
            if config.pool is not None and not self.extra(kind):
                raise UsageError(
                    f"{config.pool}: no expert of kind {kind!r} of this backbone on these sites; "
                    "run without `pool`"
                )
            for name, entry in self.extra(kind).items():
                size = adapter_kind(kind).size_of(next(iter(entry.expert.sites.values())))
                if size != config.rank:
                    raise UsageError(
                        f"{config.pool}: {name!r} is of size {size}, and task embeddings compare "
                        f"experts of one size, here {config.rank}; "
                        f"give `rank={size}`, or another `pool`"
                    )

    def kinds_by_depth(self) -> Iterator[list[str]]:
        """Groups of kinds that can share a layer cache."""
        groups: dict[tuple[str, int], list[str]] = {}
        for kind, sites in self.sites.items():
            groups.setdefault(layers_below(self.backbone.model, sites), []).append(kind)
        yield from groups.values()

    def helpers(self, kinds: Sequence[str]) -> list[Key]:
        """The full-data cell of each task; its own expert helps the other tasks."""
        seed = (self.config.full_seeds or self.config.seeds)[0]
        # A single target helps no other.
        helping = [task for task in self.targets if self._measured != [task]]
        return [Key(kind, task, None, seed) for kind in kinds for task in helping]

    def extra(self, kind: str) -> dict[str, PoolEntry]:
        """Name to entry of the compatible experts of the extra pool."""
        return {
            name: entry
            for name, entry in self._extra.items()
            if (entry.expert.kind, entry.expert.backbone_digest) == (kind, self.backbone.digest)
            and entry.expert.sites.keys() == set(self.sites[kind])
            # The cells' own embeddings are empirical, and Fishers do not compare with others.
            and entry.fisher == "empirical"
            and name not in self.targets
        }

    def rows(self, key: Key) -> tuple[Split, Split | None]:
        """A cell's training rows, and the rows held back of full data."""
        data = self.targets[key.task].data.train
        return split_rows(
            data,
            shots=key.shots,
            train_limit=None,
            validation_fraction=min(0.1, self.config.validation_rows / len(data.rows)),
            seed=key.seed,
        )

    def training(self, key: Key, *, num_rows: int) -> TrainingSettings:
        """How a cell's own expert is trained."""
        config, full = self.config, key.shots is None
        few_steps = max(config.steps, config.epochs * -(-num_rows // config.batch_size))
        return TrainingSettings(
            kind=key.kind,
            sites=self.sites[key.kind],
            rank=config.rank,
            scaling=expert_kind(key.kind).scaling(config.lora_alpha, config.rank),
            learning_rate_factor=config.full_learning_rate_factor
            if full
            else config.learning_rate_factor or few_shot_factor(num_rows),
            steps=config.full_steps if full else few_steps,
            batch_size=config.full_batch_size if full else config.batch_size,
            warmup=config.warmup,
            weight_decay=config.weight_decay,
            eval_every=config.eval_every,
            patience=config.patience,
            seed=key.seed,
        )

    def expert_settings(self, key: Key) -> str:
        """SHA-256 over everything that a cell's own expert and task embedding depend on."""
        train, validation = self.rows(key)
        target = self.targets[key.task]
        training = self.training(key, num_rows=len(train.rows))
        return _sha(
            {
                "format": FORMAT,
                "backbone": self.backbone.digest,
                # The word of the first version; another would orphan every measured cell.
                # Likewise `size`, which is the rank.
                "recipe": {
                    "size" if name == "rank" else name: getattr(training, name)
                    for name in _DECISIVE
                },
                # The product and not the factor: a kind's usual rate can change with the version.
                "learning_rate": training.peak_learning_rate,
                "bitfit_learning_rate": replace(training, kind="bitfit").peak_learning_rate,
                "labels": target.task.labels,
                "max_length": target.scorer.max_length,
                "train": data_digest(train),
                "validation": None if validation is None else data_digest(validation),
                "seed": key.seed,
                "fisher_samples": self.config.fisher_samples,
            }
        )

    def cell_settings(self, key: Key) -> str:
        """SHA-256 over everything that a cell depends on, without the methods' settings."""
        if key not in self._settings:
            self._settings[key] = self._cell_settings(key)
        return self._settings[key]

    def _cell_settings(self, key: Key) -> str:
        target = self.targets[key.task]
        return _sha(
            {
                "own": self.expert_settings(key),
                "test": target.test_digest,
                "metric": target.task.metric,
                "top_k": self.config.top_k,
                "helpers": {
                    helper.task: self._helper_settings[helper]
                    for helper in self.helpers([key.kind])
                    if helper.task != key.task
                },
                "extra": {
                    name: entry.expert.digest for name, entry in self.extra(key.kind).items()
                },
            }
        )

    @cached_property
    def _helper_settings(self) -> dict[Key, str]:
        return {helper: self.expert_settings(helper) for helper in self.helpers(self.config.kinds)}


def _target(task: Task, config: CompareSettings, backbone: Backbone) -> Target:
    task = with_labels(task)
    if task.target is not None:
        raise TaskError(
            f"task {task.name!r}: its answers are free texts (target), and classifiers are "
            "compared; tune it with pidep tune"
        )
    data = load_data(task)
    train, test = (
        limit(data.train, config.train_limit, seed=0),
        limit(data.test, config.test_limit, seed=0),
    )
    require_every_label(task, train)
    for shots in config.shots:
        # Drawn once to see that every class has enough rows, before hours of measuring.
        few_shot(train, shots=shots, seed=0)
    length = min(config.max_length or task.max_length, backbone.max_positions)
    count_cut_texts(task, backbone, [train, test], length)
    return Target(task, TaskData(train, test), scorer_for_task(backbone, task, max_length=length))


def _sha(content: Mapping[str, Any]) -> str:
    return "sha256:" + hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
