"""`pidep tune --policy zero-shot` on the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.cli.run import Done, assert_refused, write_pool
from tests.conftest import make_expert


def test_with_labels_to_test_on_and_without(
    work: Path, inside: Callable[..., Done], tiny: Any, tiny_folder: Path
) -> None:
    write_pool(
        work / "pool", *(make_expert(tiny, name=name, seed=seed) for seed, name in enumerate("abc"))
    )
    common = (
        "tune",
        "film.yaml",
        "--backbone",
        tiny_folder,
        "--policy",
        "zero-shot",
        "--rank",
        2,
        "--out",
        "run",
    )
    assert_refused(inside(*common), "give --pool")

    done = inside(*common, "--pool", "pool", "--top-k", 2, "--temperature", 0.5)
    assert done.code == 0
    # One line, before the run, so that nobody has to read the guide to know.
    assert done.err.startswith("warning: policy zero-shot: similarity without labels did not")
    assert done.err.count("\n") == 1
    assert "zero-shot mixture" in done.out

    rows = [json.loads(line) for line in (work / "rows.jsonl").read_text().splitlines()]
    (work / "rows.jsonl").write_text(
        "".join(json.dumps({"text": row["text"]}) + "\n" for row in rows)
    )
    done = inside(*common, "--pool", "pool", "--overwrite")
    assert done.code == 0
    assert "the test rows have no labels, so nothing was measured" in done.out
