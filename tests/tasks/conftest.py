"""Cache folders of one test alone."""

from __future__ import annotations

from pathlib import Path

import datasets
import pytest


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cache folders of this test alone."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hf"))
    monkeypatch.setenv("PIDEP_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("PIDEP_IMAGES", raising=False)
