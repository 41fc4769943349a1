"""The pools that a run accepts, the moment of the check, and large pools that are not read as a
whole.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pidep.errors import ExpertError, TaskError
from pidep.experts.folder import Expert, read_expert, write_expert
from pidep.settings import checked
from pidep.similarity import pool as pool_module
from pidep.similarity.index import TaskIndex
from pidep.similarity.pool import task_graph
from pidep.tuning import tune as tuning
from pidep.tuning.settings import TuneSettings
from tests.cli.run import contents, write_pool
from tests.conftest import make_expert

TINY = {
    "steps": 4,
    "batch_size": 8,
    "eval_every": 2,
    "mixture_steps": 2,
    "rank": 2,
    "fisher_samples": 8,
    "folds": 2,
}


@pytest.fixture
def run(tiny_folder: Path, task_file: Path, tmp_path: Path):  # type: ignore[no-untyped-def]
    def tune(out: str = "run", **more: object) -> tuning.TuneResult:
        common = {
            **TINY,
            "task": str(task_file),
            "backbone": str(tiny_folder),
            "pool": tmp_path / "pool",
            "policy": "uniform",
            "neighbours_by": "fisher",
        }
        return tuning.tune(checked(TuneSettings, {**common, **more}, where="tune"), tmp_path / out)

    return tune


def fisher_of(folder: Path) -> str:
    return str(read_expert(folder).provenance["fisher"])


# Large pools.


@pytest.mark.parametrize(
    "count", [12, pytest.param(260, marks=pytest.mark.slow)]
)  # up to 256 tasks, the index compares all of them
def test_a_large_pool_gives_the_same_run_and_only_its_neighbours_are_read(
    run: Any, tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    read: list[str] = []

    def reading(folder: Path) -> Expert:
        read.append(Path(folder).name)
        return read_expert(folder)

    write_pool(
        tmp_path / "pool",
        *(make_expert(tiny, name=f"task-{seed}", seed=seed) for seed in range(count)),
    )
    monkeypatch.setattr(pool_module, "INDEXED_FROM", count + 1)
    whole = run("whole", add_to_pool=False)
    monkeypatch.setattr(pool_module, "INDEXED_FROM", count)
    monkeypatch.setattr(pool_module, "read_expert", reading)
    indexed = run("indexed", add_to_pool=False)
    assert len(whole.neighbours) == 3
    assert indexed.neighbours == whole.neighbours
    assert (indexed.digest, indexed.metrics) == (whole.digest, whole.metrics)
    assert read == [near.name for near in whole.neighbours]


@pytest.mark.parametrize("indexed_from", [1, 256])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backbone_digest": "sha256:other"}, "pool/odd: expert of another backbone"),
        ({"kind": "bitfit"}, r"pool/odd: is of kind 'bitfit', this run is 'lora'"),
        ({"sites": ["*query"]}, r"pool/odd: acts on 2 sites, this run on 12"),
        ({"rank": 3}, r"pool.*rank"),
        (
            {"provenance": {"fisher": "true"}},
            r"pool/odd: its task embedding is of the true Fisher, expected empirical; use "
            r"`fisher=true`",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_does_not_fit_is_refused_before_anything_is_trained(
    run: Any,
    tiny: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    indexed_from: int,
    change: dict[str, Any],
    message: str,
) -> None:
    monkeypatch.setattr(pool_module, "INDEXED_FROM", indexed_from)
    shape = {key: value for key, value in change.items() if key in ("sites", "rank")}
    odd = replace(
        make_expert(tiny, name="odd", **shape),
        **{key: value for key, value in change.items() if key not in shape},
    )
    if odd.kind == "bitfit":
        odd = replace(
            odd,
            sites={
                site: {"bias": tensors["lora_B"][:, 0].copy()}
                for site, tensors in odd.sites.items()
            },
            scaling=1.0,
        )
    write_pool(tmp_path / "pool", odd)
    before = contents(tmp_path / "pool")
    (tmp_path / "other.yaml").write_text(
        (tmp_path / "film.yaml").read_text().replace("name: film", "name: other")
    )
    with pytest.raises(ExpertError, match=message):
        run(helpers=[str(tmp_path / "other.yaml")])
    after = contents(tmp_path / "pool")
    after.pop(".sketches.safetensors", None)
    assert after == before
    assert not (tmp_path / "run").exists()


def test_a_helper_that_is_not_there_is_refused_before_another_is_trained(
    run: Any, tmp_path: Path
) -> None:
    (tmp_path / "other.yaml").write_text(
        (tmp_path / "film.yaml").read_text().replace("name: film", "name: other")
    )
    with pytest.raises(TaskError, match="nowhere"):
        run(helpers=[str(tmp_path / "other.yaml"), "nowhere.yaml"])
    assert not (tmp_path / "pool").exists()


def test_missing_helpers_are_trained_and_taken(run: Any, tmp_path: Path) -> None:
    (tmp_path / "other.yaml").write_text(
        (tmp_path / "film.yaml").read_text().replace("name: film", "name: other")
    )
    assert [
        near.name for near in run(helpers=[str(tmp_path / "other.yaml")], fisher="true").neighbours
    ] == ["other"]
    assert fisher_of(tmp_path / "pool" / "other") == "true"


# Kinds of Fisher.


def test_the_fisher_is_the_one_asked_for_and_recorded(run: Any, tmp_path: Path) -> None:
    found = {}
    for kind in ("empirical", "true", "batch_squared"):
        run(kind, pool=tmp_path / kind / "pool", fisher=kind, top_k=0)
        folders = [tmp_path / kind / name for name in ("own", "expert", "pool/film")]
        assert [fisher_of(folder) for folder in folders] == [kind] * 3
        found[kind] = load_file(tmp_path / kind / "own" / "fisher.safetensors")
    assert (
        len({read_expert(tmp_path / kind / "own").digest for kind in found}) == 1
    )  # the expert is the same
    name = next(iter(found["true"]))
    arrays = [embedding[name] for embedding in found.values()]
    assert not any(
        np.allclose(arrays[left], arrays[right], rtol=0.05)
        for left, right in ((0, 1), (0, 2), (1, 2))
    )


def test_resume_does_not_hang_on_the_fisher(
    run: Any, tiny_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    first = run("run", fisher="empirical", top_k=0)
    common = {
        **TINY,
        "task": str(task_file),
        "backbone": str(tiny_folder),
        "policy": "uniform",
        "fisher": "true",
        "top_k": 0,
    }
    again = tuning.tune(
        checked(TuneSettings, {**common, "pool": tmp_path / "pool"}, where="tune"),
        tmp_path / "run",
        resume=True,
        overwrite=True,  # with another Fisher, the run is another one
    )
    assert again.digest == first.digest
    assert fisher_of(tmp_path / "run" / "own") == "true"


@pytest.fixture
def mixed(tiny: Any, tmp_path: Path) -> Path:
    """A pool with task embeddings of two Fishers."""
    experts = [make_expert(tiny, name=name, seed=seed) for seed, name in enumerate("abc")]
    return write_pool(
        tmp_path / "pool", *experts[:2], replace(experts[2], provenance={"fisher": "true"})
    )


def test_a_graph_of_two_fishers_is_refused(mixed: Path) -> None:
    with pytest.raises(
        ExpertError, match="embedding of a is of the empirical Fisher, that of c of the true one"
    ):
        task_graph(mixed)
    with pytest.raises(
        ExpertError,
        match=r"pool/c: its task embedding is of the true Fisher, that of 'a' of the empirical one",
    ):
        task_graph(mixed, top_k=1)


def test_sketches_of_another_fisher_are_forgotten(mixed: Path) -> None:
    """The first task changes after the others were sketched, so the cached sketches must not be
    used.
    """
    write_expert(
        replace(read_expert(mixed / "c"), provenance={}),
        mixed / "c",
        fisher=load_file(mixed / "c" / "fisher.safetensors"),
    )
    assert len(TaskIndex.open(mixed)) == 3
    record = json.loads((mixed / "a" / "expert.json").read_text())
    (mixed / "a" / "expert.json").write_text(
        json.dumps({**record, "provenance": {"fisher": "true"}})
    )
    with pytest.raises(ExpertError, match="pool/b: its task embedding is of the empirical Fisher"):
        TaskIndex.open(mixed)


def test_zero_shot_takes_any_fisher_but_not_two(run: Any, mixed: Path) -> None:
    with pytest.raises(
        ExpertError, match=r"pool/c: its task embedding is of the true Fisher, expected empirical"
    ):
        run(policy="zero-shot")
    for name in "ab":
        expert = read_expert(mixed / name)
        write_expert(
            replace(expert, provenance={"fisher": "true"}),
            mixed / name,
            fisher=load_file(mixed / name / "fisher.safetensors"),
        )
    assert len(run(policy="zero-shot").neighbours) == 3


def test_a_damaged_neighbour_of_a_large_pool_is_named(
    run: Any, tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "INDEXED_FROM", 1)
    write_pool(tmp_path / "pool", make_expert(tiny, name="odd"))
    path = tmp_path / "pool" / "odd" / "adapter_model.safetensors"
    save_file(
        {name: array + 1 for name, array in load_file(path).items()},
        path,
        metadata={"format": "pt"},
    )
    with pytest.raises(ExpertError, match="pool/odd: digest mismatch"):
        run()
