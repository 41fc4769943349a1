"""A target and two helpers on a tiny backbone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pidep.experts.folder import Expert
from pidep.tasks.data import Split
from pidep.tuning.trainer import Scorer
from tests.conftest import make_expert

ROWS = Split(
    ["the film was good", "awful", "a very bad film", "great film", "good good", "the bad film", "a great", "awful bad"], [1, 0, 0, 1] * 2
)


@pytest.fixture
def parts(tiny: Any) -> tuple[Scorer, Expert, list[Expert]]:
    """Scorer, own expert, helpers."""
    experts = [make_expert(tiny, name=name, seed=seed) for seed, name in enumerate(("target", "one", "two"))]
    return Scorer(tiny, torch.from_numpy(experts[0].label_embeddings), 20.0, 12), experts[0], experts[1:]
