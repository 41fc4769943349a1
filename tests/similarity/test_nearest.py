"""`Pool`: a folder of experts that is read as far as needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pidep.errors import ExpertError
from pidep.experts.folder import read_expert
from pidep.similarity import pool as pool_module
from pidep.similarity.measures import most_similar, similarity
from pidep.similarity.pool import Pool, read_pool
from tests.cli.run import write_pool
from tests.conftest import make_expert

NAMES = ("a", "b", "c", "d")


@pytest.fixture
def folder(tiny: Any, tmp_path: Path) -> Path:
    experts = [make_expert(tiny, name=name, seed=seed) for seed, name in enumerate(NAMES)]
    return write_pool(tmp_path / "pool", *experts)


def test_a_pool_is_its_experts_by_name(folder: Path) -> None:
    pool = Pool(str(folder), exclude={"b"})
    assert (list(pool), len(pool), "b" in pool, "c" in pool) == (["a", "c", "d"], 3, False, True)
    assert pool.expert("c").digest == read_expert(folder / "c").digest
    assert pool.folders["c"] == folder / "c"
    assert read_pool(folder).keys() == set(NAMES)


@pytest.mark.parametrize("indexed_from", [1, 256])
def test_the_nearest_are_the_most_similar_and_never_the_excluded(
    folder: Path, monkeypatch: pytest.MonkeyPatch, indexed_from: int
) -> None:
    monkeypatch.setattr(pool_module, "INDEXED_FROM", indexed_from)
    pool = Pool(folder, exclude={"d"})
    target = pool.embedding("a")
    others = {name: pool.embedding(name) for name in "bc"}
    found = pool.nearest(target, 5, exclude={"a"})
    assert [near.name for near in found] == [
        near.name for near in most_similar(target, others, top_k=5)
    ]
    assert len(found) == 2
    for near in found:
        assert near.similarity == pytest.approx(similarity(target, others[near.name]))
    assert pool.nearest(target, 1, exclude={"a"}) == found[:1]
    assert pool.nearest(target)[0].name == "a"
    assert pool.nearest(target, 0) == []
    assert pool.nearest(target, exclude=set(NAMES)) == []


def test_nearest_reads_no_expert(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(where: Path) -> None:
        raise AssertionError(f"{where} was read")

    monkeypatch.setattr(pool_module, "read_expert", refuse)
    pool = Pool(folder)
    assert len(pool.nearest(pool.embedding("a"), 2)) == 2


def test_an_absent_folder_is_an_empty_pool(tmp_path: Path, folder: Path) -> None:
    pool = Pool(tmp_path / "nowhere")
    assert (len(pool), pool.nearest(Pool(folder).embedding("a"))) == (0, [])


def test_an_unknown_name_is_refused_with_a_suggestion(folder: Path) -> None:
    with pytest.raises(ExpertError, match="no task 'e' with a task embedding"):
        Pool(folder).expert("e")
    with pytest.raises(ExpertError, match="no task 'b'"):
        Pool(folder, exclude={"b"}).embedding("b")
