"""The experts that the tests of interpolation share."""

import pytest
import torch

from pidep.training.scorer import Scorer
from tests.conftest import make_expert


@pytest.fixture
def parts(tiny):
    experts = [
        make_expert(tiny, name=name, seed=seed)
        for seed, name in enumerate(("target", "one", "two"))
    ]
    return (
        Scorer(tiny, torch.from_numpy(experts[0].label_embeddings), 20.0, 12),
        experts[0],
        experts[1:],
    )
