"""The tasks that the tests of comparisons share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def tasks(task_file: Path) -> list[str]:
    """Three tasks over the same rows, with different splits."""
    text = task_file.read_text()
    files = []
    for seed, name in enumerate(("one", "two", "three")):
        path = task_file.with_name(f"{name}.yaml")
        path.write_text(text.replace("name: film", f"name: {name}") + f"split_seed: {seed}\n")
        files.append(str(path))
    return files
