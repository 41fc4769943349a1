"""A working folder for the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pidep.experts.folder import write_expert
from tests.conftest import make_expert


@pytest.fixture
def work(task_file: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: film.yaml and its rows.jsonl, nothing else."""
    monkeypatch.chdir(task_file.parent)
    return task_file.parent


@pytest.fixture
def lora(work: Path, tiny: Any) -> Path:
    """A folder as PEFT writes it."""
    write_expert(make_expert(tiny), work / "lora")
    return work / "lora"
