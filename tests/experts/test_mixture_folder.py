"""A mixture on disk: what is written is read back, and damage is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pidep.errors import ExpertError
from pidep.experts.folder import write_expert
from pidep.experts.mixed import MixedExpert
from pidep.experts.mixture_folder import part_digests, read_served, write_mixture
from pidep.inputs.template import Template
from tests.serving.experts import small_expert

A, B = (small_expert(name=name, seed=seed) for seed, name in enumerate("ab"))
HEAD = replace(
    A, name="both", sites={}, scaling=1.0, template=Template("{text}"), metrics={"accuracy": 0.5}
)


def mixed(*alpha: float) -> MixedExpert:
    return MixedExpert(HEAD, (A, B), {"layer.0": alpha})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_mixture(mixed(0.25, 0.75), tmp_path / "mixture")


@given(share=st.floats(0, 1, width=32), twice=st.booleans())
@settings(max_examples=20, deadline=None)
def test_what_is_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, share: float, twice: bool
) -> None:
    parts = (A, A, B) if twice else (A, B)
    alpha = (share / 2, share / 2, 1 - share) if twice else (share, 1 - share)
    given = MixedExpert(HEAD, parts, {"layer.0": alpha})
    folder = write_mixture(given, tmp_path_factory.mktemp("mixture") / "it")
    found = read_served(folder)
    assert isinstance(found, MixedExpert)
    assert found.digest == given.digest
    assert found.alphas == {"layer.0": alpha}
    assert [part.digest for part in found.parts] == [part.digest for part in parts]
    assert replace(found.head, label_embeddings=HEAD.label_embeddings) == HEAD
    assert np.array_equal(found.head.label_embeddings, HEAD.label_embeddings)
    assert part_digests(folder) == (A.digest, B.digest)


def test_the_record_is_golden(folder: Path) -> None:
    found = json.loads((folder / "mixture.json").read_text())
    head = found.pop("head")
    assert found == {
        "schema": 1,
        "digest": mixed(0.25, 0.75).digest,
        "parts": [A.digest, B.digest],
        "alphas": {"layer.0": [0.25, 0.75]},
    }
    assert (head["name"], head["sites"], head["schema"]) == ("both", [], 3)
    assert sorted(path.name for path in folder.iterdir()) == [
        "labels.safetensors",
        "mixture.json",
        "parts",
    ]


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    record = json.loads((folder / "mixture.json").read_text())
    change(record)
    (folder / "mixture.json").write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda folder: edit(folder, lambda it: it["alphas"].update({"layer.0": [0.5, 0.5]})),
            "digest mismatch, mixture.json says sha256:",
        ),
        (
            lambda folder: edit(folder, lambda it: it["head"].update(labels=["yes", "no"])),
            "digest mismatch",
        ),
        (
            lambda folder: edit(folder, lambda it: it["alphas"].update({"layer.0": [0.5, 0.6]})),
            "of at least 0 and of sum 1; make it again",
        ),
        (lambda folder: edit(folder, lambda it: it.pop("parts")), "malformed .parts: Field"),
        (lambda folder: edit(folder, lambda it: it.update(parts=["../a"])), "malformed .parts.0"),
        (lambda folder: edit(folder, lambda it: it.update(more=1)), "malformed .more: Extra"),
        (lambda folder: edit(folder, lambda it: it.update(head={})), "schema None"),
        (lambda folder: (folder / "mixture.json").write_text("["), "malformed"),
        (lambda folder: (folder / "labels.safetensors").unlink(), "labels.safetensors"),
        (lambda folder: shutil.rmtree(folder / "parts"), "no such expert folder"),
        (
            lambda folder: [
                shutil.rmtree(part) or write_expert(replace(A, name="c", scaling=1.0), part)
                for part in (folder / "parts").iterdir()
            ],
            "holds sha256:[0-9a-f]+, expected sha256:[0-9a-f]+; copy it again",
        ),
    ],
    ids=[
        "alphas",
        "labels",
        "sum",
        "no parts",
        "path",
        "unknown key",
        "head",
        "json",
        "label embeddings",
        "no folder",
        "another part",
    ],
)
def test_damage_is_refused(folder: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(folder)
    with pytest.raises(ExpertError, match=message):
        read_served(folder)


def test_only_a_mixture_is_written_over(folder: Path, tmp_path: Path) -> None:
    write_mixture(mixed(0.5, 0.5), folder)
    assert read_served(folder).digest == mixed(0.5, 0.5).digest
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    with pytest.raises(ExpertError, match=r"holds something, and no mixture\.json"):
        write_mixture(mixed(0.5, 0.5), other)
