"""The task graph over a pool: its content, its four outputs, and refused pools."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import networkx
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pidep.errors import ExpertError
from pidep.experts.folder import write_expert
from pidep.similarity.measures import similarity
from pidep.similarity.picture import draw
from pidep.similarity.pool import read_pool, task_graph
from tests.cli.run import Done, untouched, write_pool
from tests.conftest import make_expert

NAMES = ["book", "film", "meal"]


@pytest.fixture
def pool(tiny, tmp_path: Path) -> Path:
    return write_pool(
        tmp_path / "pool",
        *(make_expert(tiny, name=name, seed=seed) for seed, name in enumerate(NAMES)),
    )


@pytest.fixture
def shown(
    pool: Path, inside: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Done]:
    """Run `pidep graph pool …` beside the pool."""
    monkeypatch.chdir(pool.parent)

    def run(*arguments: str) -> Done:
        done = inside("graph", "pool", *arguments)
        assert (done.code, done.err) == (0, "")
        return done

    return run


def weights(graph: networkx.Graph) -> dict[frozenset[str], float]:
    return {frozenset(edge): graph.edges[edge]["similarity"] for edge in graph.edges}


# The graph.


def test_every_pair_of_tasks_has_its_similarity(pool: Path) -> None:
    entries, graph = read_pool(pool), task_graph(pool)
    assert {name: graph.nodes[name]["digest"] for name in graph} == {
        name: entries[name].expert.digest for name in NAMES
    }
    assert weights(graph) == {
        frozenset(pair): similarity(entries[pair[0]].embedding, entries[pair[1]].embedding)
        for pair in combinations(NAMES, 2)
    }
    assert all(0 < value < 1 for value in weights(graph).values())


def test_a_task_is_most_like_its_twin(pool: Path) -> None:
    shutil.copyfile(pool / "film" / "fisher.safetensors", pool / "meal" / "fisher.safetensors")
    found = weights(task_graph(pool))
    assert found[frozenset({"film", "meal"})] == pytest.approx(1)
    assert found[frozenset({"film", "book"})] == pytest.approx(found[frozenset({"meal", "book"})])


def test_folders_without_an_expert_are_left_out(tiny, pool: Path) -> None:
    write_expert(make_expert(tiny, name="imported", seed=9), pool / "imported")
    (pool / "notes.txt").write_text("not an expert")
    (pool / "empty").mkdir()
    shutil.copytree(pool / "film", pool / ".film.half-written")
    assert sorted(read_pool(pool)) == NAMES


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_tasks_make_no_graph(pool: Path, count: int) -> None:
    for name in NAMES[count:]:
        shutil.rmtree(pool / name)
    with pytest.raises(ExpertError, match=rf"pool: {count} experts? .*a task graph needs two"):
        task_graph(pool)


# Its outputs.


def test_the_table_names_every_pair(pool: Path, shown: Callable[..., Done]) -> None:
    graph = task_graph(pool)
    rows = [
        [cell.strip() for cell in line.split("│")[1:-1]]
        for line in shown().out.splitlines()
        if line.startswith("│")
    ]
    assert rows == [
        [
            left,
            *(
                "" if left == right else f"{graph.edges[left, right]['similarity']:.4f}"
                for right in NAMES
            ),
        ]
        for left in NAMES
    ]


def test_json_is_the_graph(pool: Path, shown: Callable[..., Done]) -> None:
    document = json.loads(shown("--json").out)
    again = networkx.node_link_graph(document, edges="edges")
    assert weights(again) == weights(task_graph(pool))
    assert dict(again.nodes(data=True)) == dict(task_graph(pool).nodes(data=True))


def test_graphml_is_the_graph(pool: Path, shown: Callable[..., Done]) -> None:
    shown("--graphml", "out/graph.graphml")
    assert weights(networkx.read_graphml(pool.parent / "out" / "graph.graphml")) == weights(
        task_graph(pool)
    )


def test_the_picture_is_a_png(pool: Path, shown: Callable[..., Done]) -> None:
    shown("--png", "out/graph.png")
    data = (pool.parent / "out" / "graph.png").read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert data[-8:-4] == b"IEND"
    width, height = (int.from_bytes(data[at : at + 4], "big") for at in (16, 20))
    assert min(width, height) > 400


def test_the_picture_shows_the_graph(pool: Path, tmp_path: Path) -> None:
    draw(task_graph(pool), tmp_path / "one.png")
    shutil.copyfile(pool / "film" / "fisher.safetensors", pool / "meal" / "fisher.safetensors")
    draw(task_graph(pool), tmp_path / "other.png")
    assert (tmp_path / "one.png").read_bytes() != (tmp_path / "other.png").read_bytes()


# Refused pools.


def cut(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[:-3])

    return damage


def embedding_of(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / "fisher.safetensors"
        save_file({name: change(array) for name, array in load_file(path).items()}, path)

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            cut("adapter_model.safetensors"),
            r"film/adapter_model\.safetensors: truncated or damaged",
        ),
        (cut("labels.safetensors"), r"film/labels\.safetensors: truncated or damaged"),
        (cut("fisher.safetensors"), r"film/fisher\.safetensors: truncated or damaged"),
        (cut("expert.json"), r"film/expert\.json: not readable as JSON"),
        (embedding_of(lambda array: array * np.float32(np.nan)), r"film.*NaN"),
        (embedding_of(lambda array: -array), r"film.*negative"),
        (embedding_of(lambda array: array[:1]), r"(embedding|embeddings).*(shape|rank)"),
    ],
)
def test_a_damaged_expert_in_the_pool(
    pool: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(pool / "film")
    with untouched(pool), pytest.raises(ExpertError, match=message):
        task_graph(pool)


def test_experts_on_different_sites(tiny, pool: Path) -> None:
    write_pool(pool, make_expert(tiny, name="film", sites=["*query"]))
    with pytest.raises(ExpertError, match="different sites"):
        task_graph(pool)


def test_experts_of_different_backbones(tiny, pool: Path) -> None:
    stranger: Any = replace(make_expert(tiny, name="film"), backbone_digest="sha256:" + "0" * 64)
    write_pool(pool, stranger)
    with pytest.raises(ExpertError, match="different backbones"):
        task_graph(pool)
