"""`pidep compare` as a function: every method on every cell of a grid, the same rows, seeds and steps for all; resumable cell by cell.

<out>/pool/<kind>/<task>/                           the helpers: an expert of each task, trained on all of its rows
<out>/cells/<kind>/<task>/<shots|full>/<seed>.json  one cell: the score of each method on the test rows
<out>/summary.json                                  means, deviations, differences, losing cases
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pidep.backbones.backbone import Backbone
from pidep.backbones.load import load_backbone
from pidep.errors import UsageError
from pidep.experts.folder import Expert, write_expert
from pidep.files.atomic_write import write_json
from pidep.lab.baselines import BASELINES, Cell, Predictor, train_expert
from pidep.lab.compare_grid import Grid, Key, Part, Target, methods_of
from pidep.lab.compare_summary import summarise
from pidep.lab.settings import CompareSettings, Method
from pidep.similarity.fisher import diagonal_fisher
from pidep.similarity.measures import Embedding, most_similar
from pidep.similarity.pool import PoolEntry, read_pool
from pidep.tasks.data import Split, limit
from pidep.tasks.metrics import score

__all__ = ["CompareResult", "OnCell", "compare"]

OnCell = Callable[[int, int, str], None]
"""Called with cells done, cells this run measures, and what is done next."""
Record = dict[str, Any]
"""What a cell's file holds."""


@dataclass(frozen=True)
class CompareResult:
    """Every finished cell of the grid; `missing` are left to other parts, or another run."""

    out: Path
    cells: list[Record]
    missing: int
    summary: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """For `--json`: the summary and every single run."""
        return {"out": str(self.out), "missing": self.missing, "summary": self.summary, "cells": self.cells}


def compare(
    config: CompareSettings,
    out: Path,
    *,
    part: Part | None = None,
    prepare: bool = False,
    overwrite: bool = False,
    redo: Sequence[Method] = (),
    backbone: Backbone | None = None,
    on_cell: OnCell | None = None,
) -> CompareResult:
    """Measure what is not measured yet; write the cells, and the summary once none is missing.

    Args:
        part: measure this share of the cells only; the helpers must be there then.
        prepare: train the helpers (with `part`, this share of them) and stop.
        overwrite: measure cells and train helpers of other settings anew, instead of refusing them.
        redo: methods to measure again.

    Raises:
        TaskError, BackboneError, ExpertError, UsageError: the request does not fit together, or what is there was made with other
            settings; nothing was changed.
    """
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out}: is a file; give a folder")
    run = _Run(Grid(config, backbone or load_backbone(config.backbone)), out, on_cell or (lambda *_: None))
    share = part or Part(0, 1)
    helpers = run.missing_helpers(overwrite=overwrite)
    if helpers and part is not None and not prepare:
        raise UsageError(f"{out / 'pool'}: {len(helpers)} helpers are missing or of other settings; run with --prepare before --part")
    left = {} if prepare else run.left_to_measure(share, overwrite=overwrite, redo=redo)
    run.total = len(left)
    for kinds in run.grid.kinds_by_depth():
        with run.grid.backbone.cached_below([site for kind in kinds for site in run.grid.sites[kind]]):
            for key in share.share(run.grid.helpers(run.grid.config.kinds)):
                if key in helpers and key.kind in kinds:
                    run.train_helper(key)
            for key, record in left.items():
                if key.kind in kinds:
                    run.measure(key, record)
    cells = [cell for key in run.grid.cells if (cell := run.finished(key)) is not None]
    result = CompareResult(out, cells, len(run.grid.cells) - len(cells), summarise(cells))
    if not result.missing:
        write_json(out / "summary.json", result.summary)
    return result


@dataclass
class _Run:
    """A grid and the folder it is measured into."""

    grid: Grid
    out: Path
    say: OnCell
    total: int = 0

    def __post_init__(self) -> None:
        self._done = 0
        self._scores: dict[tuple[str, str], float] = {}

    # What is there, and whether it was made with these settings.

    def missing_helpers(self, *, overwrite: bool) -> list[Key]:
        """Helpers to train.

        Raises:
            UsageError: one was trained with other settings, and `overwrite` is not set.
        """
        missing = []
        for kind in self.grid.sites:
            have = read_pool(self.out / "pool" / kind)
            for key in self.grid.helpers([kind]):
                same = key.task in have and have[key.task].expert.provenance.get("settings") == self.grid.expert_settings(key)
                if key.task in have and not same and not overwrite:
                    path = self.out / "pool" / kind / key.task
                    raise UsageError(f"{path}: this helper was trained with other settings; choose another --out, or run with --overwrite")
                if not same:
                    missing.append(key)
        return missing

    def left_to_measure(self, part: Part, *, overwrite: bool, redo: Sequence[Method]) -> dict[Key, Record]:
        """The part's cells that lack a method, with what they have. What is to be measured again is taken out of the files at once.

        Raises:
            UsageError: one was measured with other settings, and neither `overwrite` nor `redo` covers it.
        """
        left: dict[Key, Record] = {}
        changed: dict[Key, Record] = {}
        for key in part.share(self.grid.cells):
            settings, methods = self.grid.cell_settings(key), methods_of(self.grid.config, key.kind)
            record = self.read(key) or {"settings": settings, "methods": {}}
            kept = {name: found for name, found in record["methods"].items() if name not in redo}
            other = {name for name in methods.keys() & kept.keys() if kept[name]["settings"] != methods[name]}
            if record["settings"] != settings:
                self._refuse(key, "it was measured with other settings, rows or helpers", "choose another --out", overwrite=overwrite)
                record, kept = {"methods": record["methods"]}, {}
            elif other:
                self._refuse(key, f"{min(other)!r} was measured with other settings", f"run with --redo {min(other)}", overwrite=overwrite)
                kept = {name: found for name, found in kept.items() if name not in other}
            new = {**record, "settings": settings, "methods": kept}
            if kept.keys() != record["methods"].keys():
                changed[key] = new
            if not methods.keys() <= kept.keys():
                left[key] = new
        for key, new in changed.items():
            write_json(self.out / key.path, new)
        return left

    def _refuse(self, key: Key, why: str, instead: str, *, overwrite: bool) -> None:
        if not overwrite:
            raise UsageError(f"{self.out / key.path}: {why}; {instead}, or run with --overwrite")

    def read(self, key: Key) -> Record | None:
        """A cell's file, finished or not."""
        path = self.out / key.path
        try:
            record: Record = json.loads(path.read_text(encoding="utf-8"))
            return {**record, "settings": record["settings"], "methods": {name: {**found} for name, found in record["methods"].items()}}
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(f"{path}: damaged cell ({type(error).__name__}: {error}); delete it and run again") from error

    def finished(self, key: Key) -> Record | None:
        """A cell that has every method asked for, all with these settings; with these methods only."""
        record, methods = self.read(key), methods_of(self.grid.config, key.kind)
        if record is None or record["settings"] != self.grid.cell_settings(key):
            return None
        if any(record["methods"].get(method, {}).get("settings") != settings for method, settings in methods.items()):
            return None
        return {**record, "methods": {method: record["methods"][method] for method in methods}}

    # Training and measuring.

    def _own(self, key: Key, train: Split, validation: Split | None) -> tuple[Expert, Embedding, Record]:
        """The cell's own expert, its task's embedding, and what they took; the helper itself where it is the same."""
        target = self.grid.targets[key.task]
        if key in self.grid.helpers([key.kind]):
            helper = read_pool(self.out / "pool" / key.kind).get(key.task)
            if helper is not None and helper.expert.provenance.get("settings") == self.grid.expert_settings(key):
                return helper.expert, helper.embedding, dict(helper.expert.provenance["cost"])
        with _clock() as cost:
            recipe = self.grid.recipe(key, num_rows=len(train.rows))
            expert, report = train_expert(target.scorer, target.task, recipe, train, validation, seed=key.seed)
            sample = limit(train, self.grid.config.fisher_samples, seed=key.seed)
            embedding = diagonal_fisher(self.grid.backbone, expert, sample.rows, sample.labels)
        return expert, embedding, {**cost, "steps": report.steps, "best_step": report.best_step}

    def train_helper(self, key: Key) -> None:
        """Train a task's expert on all of its rows, into the pool."""
        self.say(self._done, self.total, f"{key.kind} helper of {key.task}")
        expert, embedding, cost = self._own(key, *self.grid.rows(key))
        expert = replace(expert, provenance={**expert.provenance, "settings": self.grid.expert_settings(key), "cost": cost})
        write_expert(expert, self.out / "pool" / key.kind / key.task, fisher=dict(embedding))

    def _pool(self, key: Key) -> dict[str, PoolEntry]:
        """Every expert that may help a cell, by name."""
        mine = read_pool(self.out / "pool" / key.kind)
        others = {name: entry for name, entry in mine.items() if name in self.grid.targets and name != key.task}
        return {**self.grid.extra(key.kind), **others}

    def measure(self, key: Key, record: Record) -> None:
        """Run the methods a cell lacks, and write it."""
        target = self.grid.targets[key.task]
        train, validation = self.grid.rows(key)
        self.say(self._done, self.total, f"{key}: own expert")
        own, embedding, cost = self._own(key, train, validation)
        pool = self._pool(key)
        near = most_similar(embedding, {name: entry.embedding for name, entry in pool.items()}, top_k=self.grid.config.top_k)
        cell = Cell(
            scorer=target.scorer,
            task=target.task,
            recipe=self.grid.recipe(key, num_rows=len(train.rows)),
            own=own,
            helpers=tuple(pool[found.name].expert for found in near),
            similarities=tuple(found.similarity for found in near),
            train=train,
            validation=validation,
            seed=key.seed,
            pool={name: entry.expert for name, entry in pool.items()},
        )
        found = dict(record["methods"])
        for method, settings in methods_of(self.grid.config, key.kind).items():
            if method not in found:
                self.say(self._done, self.total, f"{key}: {method}")
                found[method] = self._method(cell, target, method, settings)
        facts = {
            **key._asdict(),
            "metric": target.task.metric,
            "train_rows": len(train.rows),
            "validation_rows": 0 if validation is None else len(validation.rows),
            "test_rows": len(target.data.test.rows),
            "helpers": [{"task": one.name, "similarity": one.similarity, "digest": pool[one.name].expert.digest} for one in near],
            "own": {"digest": own.digest, **cost},
        }
        write_json(self.out / key.path, {**facts, **record, "methods": found})
        self._done += 1
        self.say(self._done, self.total, str(key))

    def _method(self, cell: Cell, target: Target, method: Method, settings: Record) -> Record:
        """Score one method on the test rows; what gives the same answers as a method before is not run again."""
        with _clock() as cost:
            predictor = BASELINES[method](cell, **{name: value for name, value in settings.items() if name != "revision"})
        known = None if predictor.key is None else self._scores.get((target.task.name, predictor.key))
        with _clock() as test_cost:
            value = _score(target, predictor) if known is None else known
        if predictor.key is not None:
            self._scores[target.task.name, predictor.key] = value
        found = {"score": value, **cost, "test_seconds": test_cost["seconds"], "settings": settings, "details": predictor.details}
        return found if predictor.decision is None else {**found, "decision": predictor.decision}


def _score(target: Target, predictor: Predictor) -> float:
    test = target.data.test
    return score(target.task.metric, test.labels, predictor.logits(test.rows).argmax(1).tolist())


@contextmanager
def _clock() -> Iterator[dict[str, float]]:
    """Filled afterwards: `seconds` on the wall, `cpu_seconds` of this process, which other work on the machine changes less."""
    cost: dict[str, float] = {}
    wall, cpu = time.perf_counter(), time.process_time()
    yield cost
    cost["seconds"], cost["cpu_seconds"] = round(time.perf_counter() - wall, 3), round(time.process_time() - cpu, 3)
