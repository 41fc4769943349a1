"""The nearest tasks in pools of thousands, without reading the whole pool. No torch.

One file of the pool keeps a sketch of each task: 256 numbers, see `pidep.similarity.sketch`.
scikit-learn finds the nearest sketches, the short list. The exact similarity, over embeddings
read from the disk as needed, ranks the short list. So a sketch can cost a neighbour its place,
but never changes a figure. Up to 256 tasks the short list holds all of them.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Collection, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pidep.artifacts.names import EXPERT_RECORD, TASK_EMBEDDING
from pidep.errors import ExpertError
from pidep.files.cache_file import read_cached, write_cached
from pidep.files.tensor_file import read_tensors
from pidep.similarity.measures import Embedding, Neighbour, TensorLayout, Vector
from pidep.similarity.sketch import WIDTH, Sketcher

if TYPE_CHECKING:  # pydantic is imported when the first record is read
    from pidep.artifacts.expert_record import ExpertRecord

__all__ = ["TaskIndex", "fisher_kind", "read_record", "task_folders"]

WIDEST = 256
"""Most tasks on the short list of a query, besides the k asked for."""
MARGIN, SLACK = 1.25, 0.01
"""The short list holds sketches within 1.25 times the distance of the k-th nearest, plus 0.01.

A sketched distance is off by 4.4 % (one standard deviation), twice in a comparison, and the
similarity is not quite a function of the distance."""
_SKETCH_FILE = ".sketches.safetensors"
_MAX_CACHED_BYTES = 128 * 2**20
_log = logging.getLogger(__name__)


def task_folders(pool: Path) -> dict[str, Path]:
    """Name to folder of each expert with a task embedding, sorted; an absent pool is empty."""
    if not pool.is_dir():
        return {}
    names = sorted(entry.name for entry in os.scandir(pool) if not entry.name.startswith("."))
    return {
        name: pool / name
        for name in names
        # An expert without an embedding can be served and cannot be compared.
        if (pool / name / EXPERT_RECORD).is_file() and (pool / name / TASK_EMBEDDING).is_file()
    }


def fisher_kind(provenance: Mapping[str, Any]) -> str:
    """The kind of Fisher of an expert's task embedding, from its provenance."""
    # Experts of early versions do not say: there was only the empirical Fisher.
    return str(provenance.get("fisher", "empirical"))


def read_record(folder: Path) -> ExpertRecord:
    """The record of an expert, without its tensors.

    Raises:
        ExpertError: missing, malformed, or of a schema that this pidep does not read.
    """
    from pidep.artifacts.expert_record import ExpertRecord

    return ExpertRecord.read(folder / EXPERT_RECORD)


class _Sketched(NamedTuple):
    sketch: Vector  # [256]
    stamp: tuple[int, int]


class TaskIndex:
    """The tasks of a pool, searchable by similarity."""

    def __init__(self, pool: Path, like: str) -> None:
        """An empty index; tasks that are added must be comparable with the task `like`."""
        self.pool = pool
        self.layout = TensorLayout.of(read_tensors(pool / like / TASK_EMBEDDING))
        record = read_record(pool / like)
        self._like, self._backbone_digest, self._fisher = (
            like,
            record.backbone_digest,
            fisher_kind(record.provenance),
        )
        self._sketcher = Sketcher(self.layout)
        self._search: Any
        self._set({})

    @classmethod
    def open(cls, pool: Path) -> TaskIndex:
        """The index over a pool as it is now; only new and changed tasks are sketched.

        Raises:
            ExpertError: the pool has no task embedding, or its experts are not all of one
                backbone, kind, sites, rank and Fisher.
        """
        folders = task_folders(pool)
        if not folders:
            raise ExpertError(
                f"{pool}: no expert with a task embedding; train some with pidep tune --pool"
            )
        index = cls(pool, next(iter(folders)))
        old = index._load()
        stamps = {name: _stamp(folder) for name, folder in folders.items()}
        kept = {
            name: old[name]
            for name, stamp in stamps.items()
            if name in old and old[name].stamp == stamp
        }
        fresh: dict[str, _Sketched] = {}
        # In the order of the names, so that a message always names the same task.
        for name in [name for name in stamps if name not in kept]:
            count = {"done": len(fresh), "total": len(stamps) - len(kept)}
            _log.info("graph: reads task embeddings", extra=count)
            fresh[name] = _Sketched(index._sketch(name), stamps[name])
        index._set({**kept, **fresh})
        if fresh or kept.keys() != old.keys():
            _log.info("%s: sketched %d of %d tasks", pool, len(fresh), len(folders))
            index._save()
        return index

    def __len__(self) -> int:
        return len(self.names)

    def add(self, name: str) -> None:
        """Add or update one task that was written to the pool; costs one sketch.

        Raises:
            ExpertError: the embedding is missing, damaged or not comparable with the pool's.
        """
        stamp = _stamp(self.pool / name)
        self._set({**self._tasks, name: _Sketched(self._sketch(name), stamp)})
        self._save()

    def top_k(
        self, embedding: Embedding, k: int, *, exclude: Collection[str] = ()
    ) -> list[Neighbour]:
        """The `k` most similar tasks, best first; ties by name. Similarities are exact.

        Raises:
            ExpertError: the embedding has other sites or another rank than the pool's.
        """
        vector = self.layout.vector(embedding)
        _, rows = self._shortlist(self._sketcher(vector)[None], k + len(exclude))
        names = {self.names[row] for row in rows} - set(exclude)
        ranked = [
            Neighbour(name, self.layout.similarity(vector, self._vector(name))) for name in names
        ]
        return sorted(ranked, key=lambda neighbour: (-neighbour.similarity, neighbour.name))[:k]

    def all_top_k(self, k: int) -> Iterator[tuple[str, list[Neighbour]]]:
        """Every task with its `k` most similar others, by name.

        A pair is compared once, if either task is on the other's short list. Memory grows with N,
        not with N².
        """
        tasks, others = self._shortlist(self._sketches, k + 1)
        low, high = np.minimum(tasks, others), np.maximum(tasks, others)
        low, high = np.divmod(
            # Pairs as single numbers: numpy removes duplicates of numbers faster than of rows.
            np.unique(low[low != high] * len(self) + high[low != high]),
            len(self),
        )
        found = np.zeros(len(low))
        for pair, (left, right) in enumerate(zip(low.tolist(), high.tolist(), strict=True)):
            if pair % 1000 == 0:
                count = {"done": pair, "total": len(low)}
                _log.info("graph: compares pairs of similar tasks", extra=count)
            found[pair] = self._similarity(left, right)
        task, other, both = np.r_[low, high], np.r_[high, low], np.r_[found, found]
        order = np.lexsort((other, -both, task))
        ends = np.searchsorted(task[order], np.arange(len(self) + 1))
        for row, name in enumerate(self.names):
            best = order[ends[row] : ends[row + 1]][:k]
            yield name, [Neighbour(self.names[other[at]], float(both[at])) for at in best]

    def _similarity(self, left: int, right: int) -> float:
        return self.layout.similarity(
            self._vector(self.names[left]), self._vector(self.names[right])
        )

    def _shortlist(
        self,
        sketches: Vector,  # [Q, 256]
        k: int,
    ) -> tuple[
        npt.NDArray[np.int64], npt.NDArray[np.int64]
    ]:  # [M] query and [M] task of each pair on a short list
        if self._search is None:
            # Imported here: scikit-learn takes a second, and small pools never need it.
            from sklearn.neighbors import NearestNeighbors

            self._search = NearestNeighbors(algorithm="brute", metric="euclidean").fit(
                self._sketches
            )
        far, near = self._search.kneighbors(sketches, n_neighbors=min(WIDEST + k, len(self)))
        limit = (
            # Small pools are compared as a whole, so the sketches cost them nothing.
            MARGIN * far[:, [min(k, near.shape[1]) - 1]] + SLACK if len(self) > WIDEST else np.inf
        )
        queries, places = np.nonzero(far <= limit)
        return queries, near[queries, places]

    def _sketch(self, name: str) -> Vector:
        record = read_record(self.pool / name)
        found = record.backbone_digest
        if found != self._backbone_digest:
            raise ExpertError(
                f"{self.pool / name}: expert of another backbone ({found[:19]}…) than "
                f"{self._like!r} "
                f"({self._backbone_digest[:19]}…); use one pool per backbone"
            )
        fisher = fisher_kind(record.provenance)
        if fisher != self._fisher:
            raise ExpertError(
                f"{self.pool / name}: its task embedding is of the {fisher} Fisher, that of "
                f"{self._like!r} of the {self._fisher} one; tune it again with "
                f"`fisher={self._fisher}`"
            )
        return self._sketcher(self._read_vector(name))

    def _read_vector(self, name: str) -> Vector:
        path = self.pool / name / TASK_EMBEDDING
        try:
            return self.layout.vector(read_tensors(path))
        except ExpertError as error:
            raise ExpertError(f"{path}: cannot be compared with {self._like!r}: {error}") from error

    def _set(self, tasks: dict[str, _Sketched]) -> None:
        """Replace the tasks, and everything that was computed from the old ones."""
        self._tasks = tasks
        self.names = sorted(tasks)
        self._sketches: Vector = np.array(
            [tasks[name].sketch for name in self.names], np.float32
        ).reshape(-1, WIDTH)
        self._search = None
        # Neighbours of neighbours are read again and again; the cache bounds their memory.
        room = _MAX_CACHED_BYTES // (4 * self.layout.spans[-1].stop)
        self._vector = lru_cache(maxsize=max(2, room))(self._read_vector)

    @property
    def _key(self) -> str:
        return f"{self._sketcher.key} {self._backbone_digest} {self._fisher}"

    def _load(self) -> dict[str, _Sketched]:
        """The sketches in the pool's file; none if it is missing, damaged or of another layout."""
        kept = read_cached(self.pool / _SKETCH_FILE, key=self._key)
        if kept is None:
            return {}
        names = json.loads(kept["names"].tobytes())
        return {
            name: _Sketched(sketch, (size, changed))
            for name, sketch, (size, changed) in zip(
                names, kept["sketches"], kept["stamps"].tolist(), strict=True
            )
        }

    def _save(self) -> None:
        stamps = np.array([self._tasks[name].stamp for name in self.names], np.int64)
        # safetensors holds arrays only, so the names go in as bytes.
        names = np.frombuffer(json.dumps(self.names).encode(), np.uint8)
        write_cached(
            self.pool / _SKETCH_FILE,
            {"names": names, "sketches": self._sketches, "stamps": stamps},
            key=self._key,
        )


def _stamp(folder: Path) -> tuple[int, int]:
    """Size and modification time of a task's embedding.

    A digest would read the whole pool at every start. A stale sketch costs a neighbour its place
    on the short list and never changes a figure.
    """
    try:
        found = (folder / TASK_EMBEDDING).stat()
    except OSError as error:
        raise ExpertError(
            f"{folder}: no task embedding ({error.strerror}); train it with pidep tune --pool"
        ) from error
    return found.st_size, found.st_mtime_ns
