"""A target and helpers on the tiny backbone, with everything that an estimator may ask for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from pidep.experts.folder import Expert
from pidep.similarity.estimators import Helper, Target, mean_point, point_facts, random_point
from pidep.similarity.fisher import diagonal_fisher
from pidep.tasks.data import Split
from pidep.training.scorer import scorer_for_expert
from tests.similarity.samples import random_expert

TEXTS = ["the film was good", "awful", "bad bad film", "a great", "the was a very very good film"]
ROWS = Split(TEXTS, [1, 0, 0, 1, 1])
NAMES = ("one", "two", "three")


def made_helper(backbone: Any, name: str, *, seed: int, kind: str = "lora") -> Helper:
    """A helper without facts about its task."""
    return Helper(replace(random_expert(backbone, kind, seed=seed), name=name))


def made_pool(backbone: Any, *, kind: str = "lora") -> tuple[Target, dict[str, Helper]]:
    """A target and three helpers whose rows differ."""
    bare = {
        name: made_helper(backbone, name, seed=seed, kind=kind)
        for seed, name in enumerate(NAMES, 1)
    }
    own = random_expert(backbone, kind, seed=9)
    points = [
        random_point(backbone.model, list(own.sites), kind=kind, rank=2, scaling=own.scaling),
        mean_point([one.expert for one in bare.values()]),
    ]

    def facts(expert: Expert, rows: Split) -> dict[str, Any]:
        return {
            point.name: point_facts(backbone, point, expert, rows.rows, rows.labels)
            for point in points
        }

    helpers = {}
    for number, (name, helper) in enumerate(bare.items()):
        rows = Split([TEXTS[number], TEXTS[number + 1], "a film"], [0, 1, number % 2])
        embedded = backbone.encode(rows.rows, max_length=12).numpy()
        helpers[name] = replace(
            helper,
            fisher=diagonal_fisher(backbone, helper.expert, rows.rows, rows.labels),
            mean_text=embedded.astype(np.float64).mean(0),
            at=facts(helper.expert, rows),
        )
    target = Target(
        scorer_for_expert(backbone, own),
        ROWS,
        own_fisher=diagonal_fisher(backbone, own, ROWS.rows, ROWS.labels),
        at=facts(own, ROWS),
    )
    return target, helpers
