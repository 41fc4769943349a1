"""Which architectures of the zoo are tested when.

Half of the architectures are left to the slow tests. Combinations that repeat what others show are
left to the exhaustive tests.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import nn

from tests.adapters.small_experts import model_of, trace_of
from tests.adapters.zoo import ZOO, Architecture

SLOW = {
    "BART",
    "BLIP",
    "BLIP, captions",
    "CLIP",
    "DINOv2",
    "ELECTRA",
    "MPNet",
    "OPT",
    "Qwen2",
    "RoBERTa",
    "SigLIP",
    "Swin",
    "ViLT",
}
"""Tested by the slow tests only. The other half has an architecture of every family."""
REPEATED = {
    "test_a_mixture_selects_permutes_and_folds": SLOW,
    "test_save_then_load_is_the_identity": SLOW,
    "test_each_row_can_have_its_own_expert": SLOW
    - {"OPT", "Swin"},  # samples must be found again in flattened tokens and in windows
    "test_the_command_knows_every_architecture": SLOW,
}
"""Tests, and the architectures on which they are exhaustive.

A site is mixed and saved in the same way in every architecture. Each kind still acts, learns and
has gradients on each of them. `test_a_config_is_enough` surveys each of them for the command.
"""
CACHED = {"prefix", "prompt"}
"""Kinds whose virtual tokens meet the cache of a decoder. The others act on each token alone."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent not in item.path.parents:
            continue
        params = getattr(getattr(item, "callspec", None), "params", {})
        found = {value for value in params.values() if isinstance(value, str)}
        test = getattr(item, "originalname", "")
        if found & SLOW:
            item.add_marker(pytest.mark.slow)
        if found & REPEATED.get(test, set()) or (
            test.startswith("test_with_a_cache") and found & SLOW and not found & CACHED
        ):
            item.add_marker(pytest.mark.exhaustive)


@pytest.fixture
def architecture(name: str) -> Architecture:
    return ZOO[name]


@pytest.fixture
def model(name: str) -> Iterator[nn.Module]:
    found = model_of(name)
    before = trace_of(found)
    yield found
    assert trace_of(found) == before
