"""Half of the zoo is left to the slow tests: the other half has every family in it."""

from __future__ import annotations

from pathlib import Path

import pytest

SLOW = {"BART", "BLIP", "BLIP, captions", "CLIP", "DINOv2", "ELECTRA", "MPNet", "OPT", "Qwen2", "RoBERTa", "SigLIP", "Swin", "ViLT"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        params = getattr(getattr(item, "callspec", None), "params", {})
        if Path(__file__).parent in item.path.parents and any(isinstance(value, str) and value in SLOW for value in params.values()):
            item.add_marker(pytest.mark.slow)
