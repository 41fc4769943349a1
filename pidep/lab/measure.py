"""Measuring cells: helpers and own experts are trained, every method is run and scored."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from pidep.experts.folder import Expert, write_expert
from pidep.files.atomic_write import write_json
from pidep.lab.baselines import BASELINES
from pidep.lab.cell import Cell, Predictor
from pidep.lab.cell_files import CellFiles, Record
from pidep.lab.compare_grid import Key, Target, methods_of
from pidep.lab.settings import Method
from pidep.similarity.fisher import diagonal_fisher
from pidep.similarity.measures import Embedding, most_similar
from pidep.similarity.pool import PoolEntry, read_pool
from pidep.tasks.data import Split, limit
from pidep.tasks.metrics import score
from pidep.training.own_expert import train_own_expert

__all__ = ["Measurement", "OnCell"]

_LOG = logging.getLogger(__name__)

OnCell = Callable[[int, int, str], None]
"""Called with finished cells, cells to measure, and the next piece of work."""


class Measurement:
    """Fills the folder of a comparison, cell by cell."""

    def __init__(self, files: CellFiles, *, total: int, on_cell: OnCell | None) -> None:
        self.files, self.grid, self.total = files, files.grid, total
        self._on_cell = on_cell
        self._done = 0
        self._scores: dict[tuple[str, str], float] = {}

    def _say(self, done: int, total: int, work: str) -> None:
        """Tell the log and the caller which piece of work begins."""
        _LOG.info("compare: %d of %d cells measured; %s", done, total, work)
        if self._on_cell is not None:
            self._on_cell(done, total, work)

    def _own(
        self, key: Key, train: Split, validation: Split | None
    ) -> tuple[Expert, Embedding, Record]:
        """The cell's own expert, its task embedding and their cost.

        A cell on full data shares its own expert with the helper of its task.
        """
        target = self.grid.targets[key.task]
        if key in self.grid.helpers([key.kind]):
            helper = read_pool(self.files.helper_folder(key).parent).get(key.task)
            wanted = self.grid.expert_settings(key)
            if helper is not None and helper.expert.provenance.get("settings") == wanted:
                return helper.expert, helper.embedding, dict(helper.expert.provenance["cost"])
        with _clock() as cost:
            training = self.grid.training(key, num_rows=len(train.rows))
            expert, report = train_own_expert(
                target.scorer, target.task, training, train, validation
            )
            sample = limit(train, self.grid.config.fisher_samples, seed=key.seed)
            embedding = diagonal_fisher(self.grid.backbone, expert, sample.rows, sample.labels)
        return expert, embedding, {**cost, "steps": report.steps, "best_step": report.best_step}

    def train_helper(self, key: Key) -> None:
        """Train an expert on all rows of a task, into the pool."""
        self._say(self._done, self.total, f"{key.kind} helper of {key.task}")
        expert, embedding, cost = self._own(key, *self.grid.rows(key))
        expert = replace(
            expert,
            provenance={
                **expert.provenance,
                "settings": self.grid.expert_settings(key),
                "cost": cost,
            },
        )
        write_expert(expert, self.files.helper_folder(key), fisher=dict(embedding))

    def _pool(self, key: Key) -> dict[str, PoolEntry]:
        """Name to entry of every expert that may help a cell."""
        mine = read_pool(self.files.helper_folder(key).parent)
        others = {
            name: entry
            for name, entry in mine.items()
            if name in self.grid.targets and name != key.task
        }
        return {**self.grid.extra(key.kind), **others}

    def measure(self, key: Key, record: Record) -> None:
        """Run the methods that a cell lacks, and write its file."""
        target = self.grid.targets[key.task]
        train, validation = self.grid.rows(key)
        self._say(self._done, self.total, f"{key}: own expert")
        own, embedding, cost = self._own(key, train, validation)
        pool = self._pool(key)
        near = most_similar(
            embedding,
            {name: entry.embedding for name, entry in pool.items()},
            top_k=self.grid.config.top_k,
        )
        cell = Cell(
            scorer=target.scorer,
            task=target.task,
            training=self.grid.training(key, num_rows=len(train.rows)),
            own=own,
            helpers=tuple(pool[found.name].expert for found in near),
            similarities=tuple(found.similarity for found in near),
            train=train,
            validation=validation,
            pool={name: entry.expert for name, entry in pool.items()},
        )
        found = dict(record["methods"])
        for method, settings in methods_of(self.grid.config, key.kind).items():
            if method not in found:
                self._say(self._done, self.total, f"{key}: {method}")
                found[method] = self._method(cell, target, method, settings)
        facts = {
            **key._asdict(),
            "metric": target.task.metric,
            "train_rows": len(train.rows),
            "validation_rows": 0 if validation is None else len(validation.rows),
            "test_rows": len(target.data.test.rows),
            "helpers": [
                {
                    "task": one.name,
                    "similarity": one.similarity,
                    "digest": pool[one.name].expert.digest,
                }
                for one in near
            ],
            "own": {"digest": own.digest, **cost},
        }
        write_json(self.files.out / key.path, {**facts, **record, "methods": found})
        self._done += 1
        self._say(self._done, self.total, str(key))

    def _method(self, cell: Cell, target: Target, method: Method, settings: Record) -> Record:
        """The score of one method on the test rows, with its cost.

        A method whose predictor equals that of an earlier method takes its score.
        """
        with _clock() as cost:
            predictor = BASELINES[method](
                cell, **{name: value for name, value in settings.items() if name != "revision"}
            )
        known = (
            None if predictor.key is None else self._scores.get((target.task.name, predictor.key))
        )
        with _clock() as test_cost:
            value = _score(target, predictor) if known is None else known
        if predictor.key is not None:
            self._scores[target.task.name, predictor.key] = value
        found = {
            "score": value,
            **cost,
            "test_seconds": test_cost["seconds"],
            "settings": settings,
            "details": predictor.details,
        }
        return found if predictor.decision is None else {**found, "decision": predictor.decision}


def _score(target: Target, predictor: Predictor) -> float:
    test = target.data.test
    return score(target.task.metric, test.labels, predictor.logits(test.rows).argmax(1).tolist())


@contextmanager
def _clock() -> Iterator[dict[str, float]]:
    """The cost of the block, filled at its end: `seconds` and `cpu_seconds` of this process.

    Other work on the machine changes CPU seconds less than wall-clock seconds.
    """
    cost: dict[str, float] = {}
    wall, cpu = time.perf_counter(), time.process_time()
    yield cost
    cost["seconds"], cost["cpu_seconds"] = (
        round(time.perf_counter() - wall, 3),
        round(time.process_time() - cpu, 3),
    )
