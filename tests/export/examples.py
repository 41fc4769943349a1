"""What the tests of exports share: a task, rows, and experts that act."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from pidep.export import (
    Quantisation,
    Recipe,
    load_recipe,
)
from pidep.inputs.row import Row
from pidep.tasks.data import Split
from pidep.tasks.task import Task
from tests.conftest import make_expert

TASK = Task.model_validate(
    {
        "name": "film",
        "labels": {"negative": "negative", "positive": "positive"},
        "data": {"path": "unused.jsonl"},
    }
)
ROWS = Split(
    ["the film was good", "awful", "a very bad film was the great film", "great film", "a the"],
    [1, 0, 0, 1, 1],
)
CHOICES = Split(
    [
        Row("the film was good", candidates=("good", "bad")),
        Row("awful", candidates=("very good film", "bad", "awful")),
    ],
    [0, 2],
)


def torch_scores(backbone: Any, expert: Any, texts: list[str], *, bare: bool = False) -> np.ndarray:
    """`[N, C]` probabilities of PyTorch with the expert attached."""
    from pidep.adapters.mixture import Mixture, attached

    with attached(backbone.model, None if bare else Mixture.of([expert])):
        embeddings = backbone.encode(texts, max_length=expert.max_length)
    return torch.softmax(
        expert.logit_scale * embeddings @ torch.from_numpy(expert.label_embeddings).T, 1
    ).numpy()


def noisy(backbone: Any, kind: str) -> Any:
    """An expert of a kind that clearly changes the output."""
    from pidep.adapters.mixture import Mixture, find_sites, fresh

    if kind == "prefixes side by side":
        drawn = noisy(backbone, "prefix")
        other = {
            site: {name: -array for name, array in tensors.items()}
            for site, tensors in drawn.sites.items()
        }
        return replace(
            drawn,
            name="beside",
            sites=Mixture([drawn.sites, other], [1.0] * 2, kind="prefix", on_outputs=True).folded(),
        )
    rng = np.random.default_rng(7)
    start = fresh(backbone.model, find_sites(backbone.model, kind=kind), kind=kind, rank=3)
    sites = {
        site: {
            name: (array + rng.normal(0, 0.3, array.shape)).astype(np.float32)
            for name, array in tensors.items()
        }
        for site, tensors in start.items()
    }
    return replace(
        make_expert(backbone, name=kind),
        kind=kind,
        sites=sites,
        scaling=2.0 if kind == "lora" else 1.0,
    )


def int8_recipe(**changes: Any) -> Recipe:
    """The shipped recipe for matrices as small as the tiny backbone's."""
    how = Quantisation(min_features=8)
    return load_recipe("onnx-cpu-int8").model_copy(update={"quantisation": how, **changes})
