"""Similarities of a run's task and the tasks of its pool, in the order of a dendrogram."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pidep.artifacts.names import TASK_EMBEDDING
from pidep.errors import ExpertError
from pidep.files.tensor_file import read_tensors
from pidep.similarity.index import TaskIndex, fisher_kind, read_record, task_folders
from pidep.similarity.measures import TensorLayout, Vector
from pidep.tuning.run_folder import Run

__all__ = ["SHOWN", "Neighbourhood", "neighbourhood"]

SHOWN = 30
"""Most tasks that a picture can name."""
Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Neighbourhood:
    """Tasks and their similarities; similar tasks are next to each other."""

    target: str
    names: tuple[str, ...]
    """In the order of the dendrogram."""
    similarity: Matrix
    """[N, N], rows and columns as `names`; 1 on the diagonal."""
    tree: Matrix
    """[N - 1, 4]: scipy's average linkage of 1 − similarity."""
    left_out: tuple[str, ...]
    """Tasks of another backbone, kind, rank, sites or Fisher, which cannot be compared."""
    pool_size: int

    @property
    def span(self) -> tuple[float, float]:
        """Least and greatest similarity of two tasks."""
        off = self.similarity[~np.eye(len(self.names), dtype=bool)]
        return float(off.min()), float(off.max())

    def nearest(self, count: int) -> set[tuple[int, int]]:
        """Pairs (i < j) of which one is among the `count` most similar of the other."""
        pairs = set()
        for row in range(len(self.names)):
            others = sorted(
                (other for other in range(len(self.names)) if other != row),
                key=lambda other: -self.similarity[row, other],
            )
            pairs |= {(min(row, other), max(row, other)) for other in others[:count]}
        return pairs


def neighbourhood(run: Run, pool: Path | None) -> Neighbourhood | None:
    """The run's task among at most `SHOWN` tasks of the pool, the nearest; None without others.

    Raises:
        ExpertError: an embedding is damaged.
    """
    path = run.folder / "own" / TASK_EMBEDDING
    folders = {
        name: folder
        for name, folder in (task_folders(pool) if pool else {}).items()
        if name != run.name
    }
    if not folders or not (
        path.is_file() or (path := run.folder / "expert" / TASK_EMBEDDING).is_file()
    ):
        return None
    own = read_tensors(path)
    layout = TensorLayout.of(own)
    shown = sorted(folders)
    if pool is not None and len(folders) >= SHOWN:
        shown = [
            near.name for near in TaskIndex.open(pool).top_k(own, SHOWN - 1, exclude={run.name})
        ]
    vectors, left_out = {run.name: layout.vector(own)}, []
    for name in shown:
        vector = _vector(folders[name], layout, run)
        if vector is None:
            left_out.append(name)
        else:
            vectors[name] = vector
    return (
        None
        if len(vectors) < 2
        else _arranged(run.name, vectors, layout, tuple(left_out), len(folders))
    )


def _vector(folder: Path, layout: TensorLayout, run: Run) -> Vector | None:
    record = read_record(folder)
    if (record.backbone_digest, fisher_kind(record.provenance)) != (
        run.expert.backbone_digest,
        fisher_kind(run.expert.provenance),
    ):
        return None
    embedding = read_tensors(folder / TASK_EMBEDDING)
    try:
        return layout.vector(embedding)
    except ExpertError:
        return None


def _arranged(
    target: str,
    vectors: dict[str, Vector],
    layout: TensorLayout,
    left_out: tuple[str, ...],
    pool_size: int,
) -> Neighbourhood:
    from scipy.cluster.hierarchy import leaves_list, linkage  # type: ignore[import-untyped]
    from scipy.spatial.distance import squareform  # type: ignore[import-untyped]

    names = list(vectors)
    matrix = np.eye(len(names))
    for left in range(len(names)):
        for right in range(left):
            matrix[left, right] = matrix[right, left] = layout.similarity(
                vectors[names[left]], vectors[names[right]]
            )
    # checks=False: rounding leaves 1 - 1 a little off zero on the diagonal, and scipy would refuse
    # it.
    tree = linkage(squareform(1 - matrix, checks=False), "average", optimal_ordering=True)
    # scipy numbers the leaves as they were given; the picture needs them as they stand in it.
    order = leaves_list(tree)
    leaves = tree[:, :2] < len(names)
    tree[:, :2][leaves] = np.argsort(order)[tree[:, :2][leaves].astype(int)]
    return Neighbourhood(
        target,
        tuple(names[row] for row in order),
        matrix[np.ix_(order, order)],
        tree,
        left_out,
        pool_size,
    )
