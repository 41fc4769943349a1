"""`pidep graph`, through the command line's own parser."""

import json
from pathlib import Path

import networkx
import numpy as np
import pytest
from typer.testing import CliRunner

from pidep.cli.app import app
from pidep.errors import ExpertError, UsageError
from pidep.experts.folder import write_expert
from pidep.similarity import pool as pool_module
from pidep.similarity.learned import FEATURES, LearnedTransfer, MeasuredPair, write_learned
from pidep.similarity.measures import similarity, similarity_by_site
from pidep.similarity.picture import draw
from pidep.similarity.pool import explain_task, read_pool, task_graph
from tests.conftest import make_expert
from tests.similarity.samples import structured_tasks, write_task


def embedding(expert, seed: int):
    rng = np.random.default_rng(seed)
    return {
        f"{site}.{name}": rng.lognormal(-9, 1, array.shape).astype(np.float32)
        for site, own in expert.sites.items()
        for name, array in own.items()
    }


@pytest.fixture
def pool(tiny, tmp_path: Path) -> Path:
    for seed, name in enumerate(("amazon", "movie", "nyt", "tweets")):
        expert = make_expert(tiny, name=name, seed=seed)
        write_expert(expert, tmp_path / "pool" / name, fisher=embedding(expert, seed))
    return tmp_path / "pool"


def graph(*arguments: str | Path) -> str:
    done = CliRunner().invoke(
        app, ["graph", *map(str, arguments)], env={"COLUMNS": "200"}, catch_exceptions=False
    )
    assert done.exit_code == 0, done.output
    return done.stdout


def test_a_small_pool_is_shown_whole(pool: Path) -> None:
    out = graph(pool)
    entries = read_pool(pool)
    assert f"{similarity(entries['amazon'].embedding, entries['nyt'].embedding):.4f}" in out
    found = json.loads(graph(pool, "--json"))
    assert len(found["edges"]) == 6
    assert {node["digest"] for node in found["nodes"]} == {
        entry.expert.digest for entry in entries.values()
    }
    assert not (pool / ".sketches.safetensors").exists()


def test_top_k_keeps_the_nearest_only(pool: Path) -> None:
    whole, nearest = task_graph(pool), task_graph(pool, top_k=1)
    for name in whole:
        best = max(whole[name].items(), key=lambda item: item[1]["similarity"])
        assert nearest.edges[name, best[0]]["similarity"] == pytest.approx(best[1]["similarity"])
    assert len(nearest.edges) < len(whole.edges)
    assert nearest.nodes["nyt"] == whole.nodes["nyt"]
    # More neighbours than tasks: all of them, and a table of as many columns.
    most = task_graph(pool, top_k=2**62)
    assert (most.graph["top_k"], len(most.edges)) == (len(whole) - 1, len(whole.edges))
    out = graph(pool, "--top-k", "1")
    best = max(whole["nyt"].items(), key=lambda item: item[1]["similarity"])
    assert f"{best[0]}  {best[1]['similarity']:.4f}" in out


def test_a_large_pool_is_shown_by_its_nearest(tmp_path: Path) -> None:
    for name, tensors in structured_tasks(60).items():
        write_task(tmp_path, name, tensors)
    found = task_graph(tmp_path)
    assert found.graph["top_k"] == pool_module.DEFAULT_TOP_K
    assert 60 * 3 / 2 <= len(found.edges) <= 60 * 3
    out = graph(tmp_path, "--png", tmp_path / "big.png", "--graphml", tmp_path / "big.graphml")
    assert "most similar tasks" in out
    assert (tmp_path / "big.png").read_bytes().startswith(b"\x89PNG")
    assert len(networkx.read_graphml(tmp_path / "big.graphml")) == 60


def test_explain_names_the_sites(pool: Path) -> None:
    out = graph(pool, "--explain", "nyt", "--top-k", "2")
    entries = read_pool(pool)
    found = json.loads(graph(pool, "--explain", "nyt", "--top-k", "2", "--json"))
    assert found["task"] == "nyt"
    assert len(found["neighbours"]) == 2
    for near in found["neighbours"]:
        sites = similarity_by_site(entries["nyt"].embedding, entries[near["name"]].embedding)
        assert near["sites"] == pytest.approx(sites)
        assert near["similarity"] == pytest.approx(
            similarity(entries["nyt"].embedding, entries[near["name"]].embedding)
        )
        ranked = sorted(sites, key=lambda site: -sites[site])
        assert list(near["sites"]) == ranked
        assert f"{sites[ranked[0]]:.4f} {ranked[0]}" in out
        assert f"{sites[ranked[-1]]:.4f} {ranked[-1]}" in out


def test_the_picture_and_the_graphml(pool: Path, tmp_path: Path) -> None:
    graph(
        pool,
        "--png",
        tmp_path / "made" / "graph.png",
        "--graphml",
        tmp_path / "made" / "graph.graphml",
    )
    assert (tmp_path / "made" / "graph.png").read_bytes().startswith(b"\x89PNG")
    assert len(networkx.read_graphml(tmp_path / "made" / "graph.graphml").edges) == 6


def test_an_impossible_view_is_refused(tiny, pool: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ExpertError, match=r"no task 'nyr' with a task embedding \(did you mean 'nyt'\?\)"
    ):
        explain_task(pool, "nyr")
    with pytest.raises(UsageError, match="--explain is about one task"):
        graph(pool, "--explain", "nyt", "--png", tmp_path / "x.png")
    other = make_expert(tiny, name="wide", rank=3)
    write_expert(other, pool / "wide", fisher=embedding(other, 0))
    with pytest.raises(ExpertError, match=r"amazon and wide cannot be compared: .* use one rank"):
        task_graph(pool)
    alone = tmp_path / "alone"
    write_expert(other, alone / "wide", fisher=embedding(other, 0))
    with pytest.raises(ExpertError, match="1 experts with a task embedding"):
        task_graph(alone)
    with pytest.raises(ExpertError, match="'wide' is the only task"):
        explain_task(alone, "wide")


def test_a_graph_that_takes_minutes_to_lay_out_is_not_drawn(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"draws up to 2000 tasks, the graph has 2001; write `graphml`"
    ):
        draw(networkx.path_graph(2001), tmp_path / "big.png")


def test_experts_of_different_backbones_are_not_compared(tiny, pool: Path) -> None:
    from dataclasses import replace

    stranger = replace(make_expert(tiny, name="stranger"), backbone_digest="sha256:1")
    write_expert(stranger, pool / "stranger", fisher=embedding(stranger, 0))
    with pytest.raises(ExpertError, match="amazon and stranger are experts of different backbones"):
        task_graph(pool)


def test_explain_shows_predicted_beside_measured_gains(pool: Path) -> None:
    """Level and parts add up to the prediction, in points."""
    rng = np.random.default_rng(0)
    names = [*sorted(read_pool(pool)), "one", "two"]
    pairs = tuple(
        MeasuredPair(
            target,
            helper,
            {name: float(rng.normal()) for name in FEATURES},
            float(rng.normal(0.02, 0.01)),
        )
        for target in names
        for helper in names
        if helper != target
    )
    write_learned(pool, LearnedTransfer({}, 8, 0, pairs))
    gains = json.loads(graph(pool, "--explain", "nyt", "--json"))["gains"]
    assert len(gains) == 5
    for gain in gains:
        said = gain["predicted"]
        assert said["gain"] == pytest.approx(said["level"] + sum(said["parts"].values()))
    out = graph(pool, "--explain", "nyt")
    assert "gains of nyt by helper, in points: predicted without it, and measured" in out
    best = gains[0]
    # The first table may name the helper, too.
    shown = [line for line in out.splitlines() if line.startswith(f"│ {best['helper']} ")][-1]
    cells = [cell.strip() for cell in shown.strip("│").split("│")]
    assert cells[6] == f"{100 * best['predicted']['gain']:.1f}"
    assert cells[8] == f"{100 * best['measured']:.1f}"
    assert " to " in cells[7]


def test_learn_says_what_it_needs(pool: Path) -> None:
    """Experts without a task.json are no targets."""
    with pytest.raises(UsageError, match=r"0 tasks with labels and a task.json, and learning"):
        graph(pool, "--learn")
    with pytest.raises(UsageError, match="run --explain, --png and --graphml without it"):
        graph(pool, "--learn", "--explain", "nyt")
