"""Top-k over pools of thousands of tasks, without an N × N matrix and without all embeddings in memory.

A sketch of each task (256 numbers, see `pidep.similarity.sketch`) is kept in one file of the pool; scikit-learn finds the
nearest sketches, and the exact similarity, over embeddings read from the disk as needed, ranks all that are nearly as near as
the k-th. A sketch can cost a neighbour its place on the short list, never change a figure; up to 256 tasks the short list is
everybody.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Collection, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pidep.errors import ExpertError
from pidep.files.cache_file import read_cached, write_cached
from pidep.files.tensor_file import read_tensors
from pidep.similarity.measures import Embedding, Layout, Neighbour, Vector
from pidep.similarity.sketch import WIDTH, Sketcher

__all__ = ["EMBEDDING_FILE", "TaskIndex", "fisher_kind", "read_record", "task_folders"]

EMBEDDING_FILE = "fisher.safetensors"
WIDEST = 256
"""Tasks looked at exactly for a query, at most (and k)."""
MARGIN, SLACK = 1.25, 0.01
"""On the short list is who is at most 1.25 times as far as the k-th nearest sketch, and 0.01: a sketched distance is off by 4.4 %
(one standard deviation), twice in a comparison, and similarity is not quite a function of it."""
_SKETCH_FILE = ".sketches.safetensors"
_MAX_CACHED_BYTES = 128 * 2**20
_log = logging.getLogger(__name__)


def task_folders(pool: Path) -> dict[str, Path]:
    """Every folder of a pool that holds an expert and its task embedding, by name, sorted; an absent pool is empty."""
    if not pool.is_dir():
        return {}
    names = sorted(entry.name for entry in os.scandir(pool) if not entry.name.startswith("."))
    return {name: pool / name for name in names if (pool / name / "expert.json").is_file() and (pool / name / EMBEDDING_FILE).is_file()}


def fisher_kind(provenance: Mapping[str, Any]) -> str:
    """Which Fisher an expert's task embedding is; the empirical one where nothing says so, for there was no other."""
    return str(provenance.get("fisher", "empirical"))


def read_record(folder: Path) -> dict[str, Any]:
    """`expert.json` alone, when the tensors are not needed.

    Raises:
        ExpertError: it cannot be read.
    """
    try:
        record: dict[str, Any] = json.loads((folder / "expert.json").read_text(encoding="utf-8"))
        found = {key: record[key] for key in ("digest", "backbone", "backbone_digest", "kind", "sites", "labels")}
        return {**found, "fisher": fisher_kind(record.get("provenance", {}))}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ExpertError(f"{folder / 'expert.json'}: not readable ({error}); copy the expert again") from error


class _Sketched(NamedTuple):
    sketch: Vector  # [256]
    stamp: tuple[int, int]


class TaskIndex:
    """The tasks of a pool, ready to be asked for the most similar ones."""

    def __init__(self, pool: Path, like: str) -> None:
        """No tasks yet; those to come must be comparable with `like`, one of the pool's."""
        self.pool = pool
        self.layout = Layout.of(read_tensors(pool / like / EMBEDDING_FILE))
        record = read_record(pool / like)
        self._like, self._backbone_digest, self._fisher = like, record["backbone_digest"], record["fisher"]
        self._sketcher = Sketcher(self.layout)
        self._search: Any
        self._set({})

    @classmethod
    def open(cls, pool: Path) -> TaskIndex:
        """The index over a pool as it is now; only tasks that are new or changed since the last time are sketched.

        Raises:
            ExpertError: the pool has no task embedding, or they are not all of one backbone, kind, sites, rank and Fisher.
        """
        folders = task_folders(pool)
        if not folders:
            raise ExpertError(f"{pool}: no expert with a task embedding; train some with pidep tune --pool")
        index = cls(pool, next(iter(folders)))
        old = index._load()
        stamps = {name: _stamp(folder) for name, folder in folders.items()}
        kept = {name: old[name] for name, stamp in stamps.items() if name in old and old[name].stamp == stamp}
        fresh = {name: _Sketched(index._sketch(name), stamp) for name, stamp in stamps.items() if name not in kept}
        index._set({**kept, **fresh})
        if fresh or kept.keys() != old.keys():
            _log.info("%s: sketched %d of %d tasks", pool, len(fresh), len(folders))
            index._save()
        return index

    def __len__(self) -> int:
        return len(self.names)

    def add(self, name: str) -> None:
        """Take in (or take in again) one task that was written to the pool; costs one sketch.

        Raises:
            ExpertError: its embedding is missing or damaged, or does not belong in this pool.
        """
        stamp = _stamp(self.pool / name)
        self._set({**self._tasks, name: _Sketched(self._sketch(name), stamp)})
        self._save()

    def top_k(self, embedding: Embedding, k: int, *, exclude: Collection[str] = ()) -> list[Neighbour]:
        """The `k` most similar tasks, best first; ties by name. Similarities are exact.

        Raises:
            ExpertError: the embedding is of other sites or another rank than the pool's.
        """
        vector = self.layout.vector(embedding)
        _, rows = self._shortlist(self._sketcher(vector)[None], k + len(exclude))
        names = {self.names[row] for row in rows} - set(exclude)
        ranked = [Neighbour(name, self.layout.similarity(vector, self._vector(name))) for name in names]
        return sorted(ranked, key=lambda neighbour: (-neighbour.similarity, neighbour.name))[:k]

    def all_top_k(self, k: int) -> Iterator[tuple[str, list[Neighbour]]]:
        """Every task with its `k` most similar others, by name.

        A pair is looked at once, when either has the other on its short list; memory grows with N, not with N².
        """
        tasks, others = self._shortlist(self._sketches, k + 1)
        low, high = np.minimum(tasks, others), np.maximum(tasks, others)
        low, high = np.divmod(np.unique(low[low != high] * len(self) + high[low != high]), len(self))
        found = np.array([self._similarity(left, right) for left, right in zip(low.tolist(), high.tolist(), strict=True)])
        task, other, both = np.r_[low, high], np.r_[high, low], np.r_[found, found]
        order = np.lexsort((other, -both, task))
        ends = np.searchsorted(task[order], np.arange(len(self) + 1))
        for row, name in enumerate(self.names):
            best = order[ends[row] : ends[row + 1]][:k]
            yield name, [Neighbour(self.names[other[at]], float(both[at])) for at in best]

    def _similarity(self, left: int, right: int) -> float:
        return self.layout.similarity(self._vector(self.names[left]), self._vector(self.names[right]))

    def _shortlist(
        self,
        sketches: Vector,  # [Q, 256]
        k: int,
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:  # [M], [M] query and task, a pair for each that is worth an exact look
        if self._search is None:
            from sklearn.neighbors import NearestNeighbors

            self._search = NearestNeighbors(algorithm="brute", metric="euclidean").fit(self._sketches)
        far, near = self._search.kneighbors(sketches, n_neighbors=min(WIDEST + k, len(self)))
        limit = MARGIN * far[:, [min(k, near.shape[1]) - 1]] + SLACK if len(self) > WIDEST else np.inf
        queries, places = np.nonzero(far <= limit)
        return queries, near[queries, places]

    def _sketch(self, name: str) -> Vector:
        record = read_record(self.pool / name)
        found = record["backbone_digest"]
        if found != self._backbone_digest:
            raise ExpertError(
                f"{self.pool / name}: expert of another backbone ({found[:19]}…) than {self._like!r} "
                f"({self._backbone_digest[:19]}…); use one pool per backbone"
            )
        if record["fisher"] != self._fisher:
            raise ExpertError(
                f"{self.pool / name}: its task embedding is of the {record['fisher']} Fisher, that of {self._like!r} of the "
                f"{self._fisher} one; tune it again with --fisher {self._fisher}"
            )
        return self._sketcher(self._read_vector(name))

    def _read_vector(self, name: str) -> Vector:
        path = self.pool / name / EMBEDDING_FILE
        try:
            return self.layout.vector(read_tensors(path))
        except ExpertError as error:
            raise ExpertError(f"{path}: cannot be compared with {self._like!r}: {error}") from error

    def _set(self, tasks: dict[str, _Sketched]) -> None:
        """These tasks; what hung on the ones before is forgotten."""
        self._tasks = tasks
        self.names = sorted(tasks)
        self._sketches: Vector = np.array([tasks[name].sketch for name in self.names], np.float32).reshape(-1, WIDTH)
        self._search = None
        room = _MAX_CACHED_BYTES // (4 * self.layout.spans[-1].stop)
        self._vector = lru_cache(maxsize=max(2, room))(self._read_vector)

    @property
    def _key(self) -> str:
        return f"{self._sketcher.key} {self._backbone_digest} {self._fisher}"

    def _load(self) -> dict[str, _Sketched]:
        """What the pool's sketch file holds; nothing where it is missing, damaged or of another layout."""
        kept = read_cached(self.pool / _SKETCH_FILE, key=self._key)
        if kept is None:
            return {}
        names = json.loads(kept["names"].tobytes())
        return {
            name: _Sketched(sketch, (size, changed))
            for name, sketch, (size, changed) in zip(names, kept["sketches"], kept["stamps"].tolist(), strict=True)
        }

    def _save(self) -> None:
        stamps = np.array([self._tasks[name].stamp for name in self.names], np.int64)
        names = np.frombuffer(json.dumps(self.names).encode(), np.uint8)
        write_cached(self.pool / _SKETCH_FILE, {"names": names, "sketches": self._sketches, "stamps": stamps}, key=self._key)


def _stamp(folder: Path) -> tuple[int, int]:
    """Size and time of change of a task's embedding.

    Not a digest: that would read the whole pool at every start, and a stale sketch costs a candidate, never a wrong figure.
    """
    try:
        found = (folder / EMBEDDING_FILE).stat()
    except OSError as error:
        raise ExpertError(f"{folder}: no task embedding ({error.strerror}); train it with pidep tune --pool") from error
    return found.st_size, found.st_mtime_ns
