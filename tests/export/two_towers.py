"""What the tests of exported towers share: experts of each tower and kind, a task, and rows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from pidep.adapters.mixture import Mixture, attached, find_sites, fresh
from pidep.experts.folder import Expert
from pidep.inputs.row import Input, Row
from pidep.tasks.data import Split
from pidep.tasks.task import Task
from tests.conftest import make_expert, png

TASK = Task.model_validate(
    {
        "name": "pets",
        "labels": {"cat": "a cat", "dog": "the big dog"},
        "input": "",
        "image": "image",
        "data": {"path": "unused.jsonl"},
    }
)
TEXTS = Split(["a red cat", "big dog", "not a photo of the dog was very good"], [0, 1, 1])
ROWS: list[Input] = [
    "a red cat",
    Row(image=png(0)),
    Row("the blue dog", png(1)),
    "not a photo of the dog was very good film a cat",
    Row("big", png(0)),
    Row(image=png(2)),
]
SITES = {"both": ("*",), "image": ("vision_model.*",), "text": ("text_model.*self_attn*",)}


def experts_of(backbone: Any) -> dict[str, Expert]:
    """A LoRA of both towers, one of each tower, and an expert of every other kind of a bank."""
    named = {
        name: make_expert(backbone, name=name, seed=seed, rank=seed + 1, sites=sites)
        for seed, (name, sites) in enumerate(SITES.items())
    }
    for kind in ("adapter", "prefix", "bitfit"):
        named[kind] = replace(named["both"], name=kind, kind=kind, sites=drawn(backbone, kind))
    vectors = backbone.encode(list(TASK.labels.values()), max_length=12).numpy()
    return {
        name: replace(
            expert,
            labels=tuple(TASK.labels),
            label_texts=tuple(TASK.labels.values()),
            label_embeddings=vectors,
            logit_scale=backbone.logit_scale,
            scaling=1.0,
        )
        for name, expert in named.items()
    }


def drawn(backbone: Any, kind: str) -> dict[str, dict[str, np.ndarray]]:
    rng = np.random.default_rng(7)
    start = fresh(backbone.model, find_sites(backbone.model, kind=kind), kind=kind, rank=2)
    return {
        site: {
            name: (array + rng.normal(0, 0.3, array.shape)).astype(np.float32)
            for name, array in tensors.items()
        }
        for site, tensors in start.items()
    }


def expected(backbone: Any, expert: Expert | None, row: Input) -> tuple[np.ndarray, np.ndarray]:
    """PyTorch's embedding `[D]` and logits `[C]` of one row alone."""
    with attached(backbone.model, None if expert is None else Mixture.of([expert])):
        embedding = backbone.encode([row], max_length=12)[0].numpy()
    if expert is None:
        return embedding, np.zeros(0)
    return embedding, expert.logit_scale * (expert.label_embeddings @ embedding)
