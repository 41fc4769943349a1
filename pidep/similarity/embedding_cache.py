"""A cache of task embeddings on disk; the key covers everything that decides their numbers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pidep.backbones.backbone import Backbone
from pidep.experts.folder import Expert
from pidep.files.cache_file import read_cached, write_cached
from pidep.inputs.row import Input
from pidep.similarity.fisher import FisherKind, diagonal_fisher

__all__ = ["cached_fisher"]

FORMAT = 1
"""Raise it when `diagonal_fisher` gives other numbers for the same inputs."""


def cached_fisher(
    cache: Path,
    backbone: Backbone,
    expert: Expert,
    rows: Sequence[Input],
    labels: Sequence[int] | None = None,
    *,
    data_digest: str,
    kind: FisherKind = "empirical",
    seed: int = 0,
    batch_size: int = 16,
) -> dict[str, npt.NDArray[np.float32]]:
    """`diagonal_fisher`, computed once for each expert, data, backbone, kind, seed and row count.

    Args:
        cache: a folder for these files only; a damaged file is computed again.
        data_digest: SHA-256 over rows and labels, in order (`pidep.tasks.data.data_digest`).
    """
    parts = {
        "backbone": backbone.digest,
        # The other kinds do not depend on the batch size, so they share a file.
        "batch_size": batch_size if kind == "batch_squared" else None,
        "data": data_digest,
        "expert": expert.digest,
        "format": FORMAT,
        "kind": kind,
        "samples": len(rows),
        "seed": seed,
    }
    key = json.dumps(parts, sort_keys=True)
    path = cache / f"{hashlib.sha256(key.encode()).hexdigest()}.safetensors"
    found = read_cached(path, key=key)
    if found is None:
        found = diagonal_fisher(
            backbone, expert, rows, labels, kind=kind, seed=seed, batch_size=batch_size
        )
        write_cached(path, found, key=key)
    return found
