"""A working folder for the command line."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def work(task_file: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: film.yaml and its rows.jsonl, nothing else."""
    monkeypatch.chdir(task_file.parent)
    return task_file.parent
