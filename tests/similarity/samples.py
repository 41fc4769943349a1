"""Experts of every kind, and pools of made-up tasks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from pidep.adapters.mixture import find_sites, fresh
from pidep.artifacts.expert_record import ExpertRecord
from pidep.artifacts.names import EXPERT_RECORD, TASK_EMBEDDING
from pidep.backbones.encoder import Encoder
from pidep.experts.folder import Expert
from tests.conftest import make_expert

Embedding = dict[str, np.ndarray]


def random_expert(backbone: Encoder, kind: str, *, seed: int = 0) -> Expert:
    """An expert of a kind, far enough from its start that every tensor has a gradient."""
    rng = np.random.default_rng(seed)
    start = fresh(backbone.model, find_sites(backbone.model, kind=kind), kind=kind, rank=2)
    sites = {
        site: {
            name: (array + rng.normal(0, 0.2, array.shape)).astype(np.float32)
            for name, array in tensors.items()
        }
        for site, tensors in start.items()
    }
    return replace(
        make_expert(backbone),
        sites=sites,
        kind=kind,
        scaling=2.0 if kind == "lora" else 1.0,
        logit_scale=5.0,
    )


def structured_tasks(count: int, *, clusters: int = 8, seed: int = 0) -> dict[str, Embedding]:
    """Made-up embeddings in clusters of tasks.

    Tasks of a cluster differ along a few directions each, by a little noise, and in scale.
    """
    rng = np.random.default_rng(seed)
    shapes = {
        "layer.0.query.lora_A": (2, 96),
        "layer.0.query.lora_B": (96, 2),
        "layer.1.value.lora_A": (2, 96),
        "layer.1.value.lora_B": (96, 2),
    }
    size = sum(int(np.prod(shape)) for shape in shapes.values())
    common = rng.normal(-12, 1.5, size)
    centres = common + rng.normal(0, 0.8, (clusters, size))
    directions = rng.normal(0, 1, (clusters, 6, size)) / 6**0.5
    tasks = {}
    for task in range(count):
        cluster = task % clusters
        logs = (
            centres[cluster]
            + rng.normal(0, 0.7, 6) @ directions[cluster]
            + rng.normal(0, 0.2, size)
            + rng.normal(0, 0.5)
        )
        parts = np.split(
            np.exp(logs).astype(np.float32),
            np.cumsum([int(np.prod(shape)) for shape in shapes.values()])[:-1],
        )
        tasks[f"task-{task:04}"] = {
            name: part.reshape(shape)
            for (name, shape), part in zip(shapes.items(), parts, strict=True)
        }
    return tasks


def write_task(
    pool: Path, name: str, embedding: Mapping[str, np.ndarray], *, backbone_digest: str = "sha256:b"
) -> None:
    """A task as the index reads it: a record and an embedding, without the expert's tensors."""
    (pool / name).mkdir(parents=True, exist_ok=True)
    record = ExpertRecord(
        schema=1,
        name=name,
        kind="lora",
        digest=f"sha256:{name}",
        backbone="b",
        backbone_digest=backbone_digest,
        sites=(),
        labels=("no", "yes"),
        label_texts=("no", "yes"),
        logit_scale=20.0,
        max_length=128,
    )
    record.write(pool / name / EXPERT_RECORD)
    save_file(dict(embedding), pool / name / TASK_EMBEDDING)
