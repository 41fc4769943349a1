"""A release publishes all or nothing: a failing step leaves bank, versions and manifest as they
were.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pidep.artifacts import BankRecord
from pidep.artifacts.names import BANK, SHIM
from pidep.deployment import release_bank, release_runs
from pidep.deployment.settings import ExportSettings
from pidep.errors import (
    BackboneError,
    ExpertError,
    ParityError,
    ServingError,
    TaskError,
    UsageError,
)
from pidep.export import Recipe, Source, compile, entries, load_recipe, read_source
from pidep.export.recipe import shipped
from pidep.runtime import Bank
from pidep.serving import ExpertStore
from pidep.tasks.data import Split, data_digest
from pidep.tasks.task import Task
from tests.cli.run import contents, untouched, write_run
from tests.conftest import make_expert, save_tiny

pytestmark = pytest.mark.slow  # a graph is compiled

TASK = Task.model_validate(
    {
        "name": "film",
        "labels": {"negative": "negative", "positive": "positive"},
        "data": {"path": "unused.jsonl"},
    }
)
ROWS = Split(["the film was good", "awful", "a very bad film", "great film"], [1, 0, 0, 1])
RECIPE = load_recipe("onnx-cpu")
Compile = Callable[..., None]


@pytest.fixture(scope="module")
def backbone(tiny_folder: Path) -> Any:
    from pidep.backbones.load import load_backbone

    return load_backbone(str(tiny_folder))


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Compile]:
    """A folder for the graph that all tests here release, and a function that compiles
    the graph.
    """
    return tmp_path_factory.mktemp("graph") / "model.onnx", compile.export_bank_graph


@pytest.fixture
def work(
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    compiled: tuple[Path, Compile],
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """An empty folder. The graph is compiled once and then copied, because all banks here are
    alike.
    """
    graph, compile_graph = compiled
    # No graph of another test or run.
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr("pidep.export.graph_cache.cache_folder", lambda: cache)

    def once(backbone: Any, groups: Any, path: Path, **more: Any) -> None:
        if not graph.is_file():
            compile_graph(backbone, groups, graph, **more)
        shutil.copyfile(graph, path)

    monkeypatch.setattr(compile, "export_bank_graph", once)
    return tmp_path


def source(backbone: Any, *, name: str = "film", seed: int = 0) -> Source:
    return Source(make_expert(backbone, name=name, seed=seed, sites=["*query"]), TASK, ROWS)


def release(work: Path, *sources: Source, recipe: Recipe = RECIPE) -> None:
    release_bank(sources, work / "repo", recipe)


def store_of(work: Path) -> ExpertStore:
    return ExpertStore(work / "expert_store")


def state(work: Path) -> dict[str, bytes | None]:
    """Every file, without the store's empty folders and its lock."""
    return {
        path: data
        for path, data in contents(work).items()
        if data is not None and not path.endswith(".lock")
    }


def test_a_release_publishes_the_bank_and_its_experts_in_one_revision(
    work: Path, backbone: Any
) -> None:
    sources = [source(backbone), source(backbone, name="book", seed=1)]
    exported = release_bank(sources, work / "repo", RECIPE)
    manifest = store_of(work).manifest()
    assert (manifest.revision, manifest.aliases) == (1, exported.experts)
    bank = Bank(work / "repo" / "pidep_bank" / "1")
    assert bank.store == store_of(work).folder
    residents = bank.build(store_of(work).published())
    answers = bank.run(residents, ROWS.rows[:2], ["film", "book"])
    digests = [getattr(answer, "digest", answer) for answer in answers]
    assert digests == list(exported.experts.values())


def test_a_release_is_logged(work: Path, backbone: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="pidep")
    release_bank([source(backbone)], work / "repo", RECIPE)
    assert caplog.messages[:3] == [
        "export: compiles the graph",
        "export: compares film with PyTorch",
        "export: 1 experts passed the parity gate",
    ]
    # The command line guesses the time left of it.
    assert (vars(caplog.records[1])["done"], vars(caplog.records[1])["total"]) == (0, 1)
    assert caplog.messages[-1] == f"export: published {work / 'repo' / 'pidep_bank'} with film"


def test_a_later_release_keeps_room_for_what_is_served(work: Path, backbone: Any) -> None:
    release(work, source(backbone))
    release(work, source(backbone, name="book", seed=1))
    manifest = store_of(work).manifest()
    assert (manifest.revision, sorted(manifest.aliases)) == (2, ["book", "film"])
    bank = Bank(work / "repo" / "pidep_bank" / "1")
    assert list(bank.build(store_of(work).published()).by_name) == ["book", "film"]
    assert list(BankRecord.read(work / "repo" / "pidep_bank" / "1").parity) == ["book"]


# Failures: every step, with an empty folder and with an earlier release.

STEPS = ["gate", "versions", "bank", "manifest"]


def break_step(step: str, work: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """Let a step fail as on a full disk; gives the recipe to release with."""
    rename, replace = os.rename, os.replace
    full = OSError(28, "No space left on device")

    def failing_rename(old: Any, new: Any) -> None:
        if step == "versions" and Path(new).parent.name == "versions":
            raise full
        # the second of two renames, after the first one has moved the old bank aside
        if step == "bank" and Path(new) == work / "repo" / "pidep_bank" and ".old." not in str(old):
            raise full
        rename(old, new)

    def failing_replace(old: Any, new: Any) -> None:
        if step == "manifest" and Path(new).name == "manifest.json":
            raise full
        replace(old, new)

    monkeypatch.setattr(os, "rename", failing_rename)
    monkeypatch.setattr(os, "replace", failing_replace)
    if step == "bank":  # two renames replace the folder where the system cannot exchange folders
        monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: object())
    if step != "gate":
        return RECIPE
    tolerance = RECIPE.tolerance.model_copy(update={"max_abs": 1e-12})
    return RECIPE.model_copy(update={"tolerance": tolerance})


@pytest.mark.parametrize("before", ["nothing", "a release"])
@pytest.mark.parametrize("step", STEPS)
def test_a_failing_step_leaves_what_was_there(
    work: Path, backbone: Any, monkeypatch: pytest.MonkeyPatch, step: str, before: str
) -> None:
    if before == "a release":
        release(work, source(backbone))
    there = state(work)
    with monkeypatch.context() as broken:
        recipe = break_step(step, work, broken)
        with pytest.raises((OSError, ParityError)):
            release(work, source(backbone, seed=1), source(backbone, name="book"), recipe=recipe)
    assert state(work) == there
    release(work, source(backbone, seed=1))  # the next attempt succeeds
    assert store_of(work).manifest().revision == (2 if before == "a release" else 1)


def test_the_manifest_is_written_last(
    work: Path, backbone: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace, seen = os.replace, []

    def watching(old: Any, new: Any) -> None:
        # A new store begins with a manifest that names nobody.
        if Path(new).name == "manifest.json" and "sha256:" in Path(old).read_text():
            bank = Bank(work / "repo" / "pidep_bank" / "1")
            new_expert = store_of(work).load(one.expert.digest)
            seen.append(list(bank.build({"film": new_expert}).by_name))
        replace(old, new)

    one = source(backbone)
    monkeypatch.setattr(os, "replace", watching)
    release(work, one)
    assert seen == [["film"]]


def test_an_expert_published_meanwhile_stops_the_release(
    work: Path, backbone: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    release(work, source(backbone))
    there = state(work)
    gate = entries.gate_bank

    def meanwhile(*arguments: Any, **more: Any) -> Any:
        store_of(work).publish(source(backbone, name="new", seed=5).expert, "new")
        return gate(*arguments, **more)

    monkeypatch.setattr(entries, "gate_bank", meanwhile)
    with pytest.raises(ServingError, match="expected revision 1, found 2; run the command again"):
        release(work, source(backbone, seed=1))
    assert {path: there[path] for path in there if "manifest" not in path}.items() <= state(
        work
    ).items()
    assert set(store_of(work).manifest().aliases) == {"film", "new"}


# Requests that are refused before anything is compiled.


def test_a_merged_model_has_one_run(work: Path) -> None:
    with untouched(work):
        with pytest.raises(UsageError, match="`form=merged`: takes one run, found 2"):
            release_runs(
                [work / "a", work / "b"], ExportSettings(repo=work / "repo", form="merged")
            )


def test_two_runs_of_one_name_are_published_under_other_names(
    work: Path, backbone: Any, task_file: Path
) -> None:
    for seed, folder in enumerate(("a", "b")):
        write_run(work / folder, make_expert(backbone, seed=seed, sites=["*query"]), task_file)
    settings = ExportSettings(repo=work / "repo")
    with pytest.raises(UsageError, match="expected runs with different names, found film, film"):
        release_runs([work / "a", work / "b"], settings)
    with untouched(work), pytest.raises(ExpertError, match=r"expert name '\.\./x'"):
        release_runs([("../x", work / "b")], settings)
    exported = release_runs([work / "a", ("film-b", work / "b")], settings)
    found = store_of(work).published()
    assert sorted(found) == ["film", "film-b"]
    # A name is no part of what answers.
    assert exported.experts["film-b"] == make_expert(backbone, seed=1, sites=["*query"]).digest
    assert found["film-b"].name == "film-b"


def test_an_expert_of_a_pool_is_exported_by_its_name(
    work: Path, backbone: Any, task_file: Path
) -> None:
    write_run(work / "pool" / "film", make_expert(backbone, sites=["*query"]), task_file)
    shutil.copytree(work / "pool" / "film" / "expert", work / "pool" / "film", dirs_exist_ok=True)
    shutil.rmtree(work / "pool" / "film" / "expert")
    settings = ExportSettings(repo=work / "repo")
    assert release_runs([work / "pool" / "film"], settings).experts.keys() == {"film"}
    with pytest.raises(
        ExpertError,
        match=r"pool/flim: no such expert folder \(did you mean 'film'\?\); .*POOL/NAME",
    ):
        release_runs([work / "pool" / "flim"], settings)


def relabelled(backbone: Any, folder: Path, task_file: Path) -> Path:
    """A run of the same name with other labels."""
    task = task_file.with_name("moods.yaml")
    labels = "labels: {bad: negative, good: positive}\nlabel_map: {negative: bad, positive: good}"
    text = task_file.read_text()
    task.write_text(text.replace("labels: {negative: negative, positive: positive}", labels))
    expert = make_expert(backbone, seed=5, sites=["*query"])
    return write_run(folder, replace(expert, labels=("bad", "good")), task)


def test_a_served_name_keeps_its_labels_unless_told(
    work: Path, backbone: Any, task_file: Path
) -> None:
    run = write_run(work / "run", make_expert(backbone, sites=["*query"]), task_file)
    other = relabelled(backbone, work / "other", task_file)
    settings = ExportSettings(repo=work / "repo")
    release_runs([run], settings)
    message = r"'film': is .*labels negative, positive.*, and this is .*labels bad, good"
    with untouched(work), pytest.raises(ExpertError, match=message):
        release_runs([other], settings)
    release_runs([other], settings.model_copy(update={"allow_new_labels": True}))
    assert store_of(work).published()["film"].labels == ("bad", "good")


def test_a_bank_keeps_its_store_unless_told(work: Path, backbone: Any, task_file: Path) -> None:
    run = write_run(work / "run", make_expert(backbone, sites=["*query"]), task_file)
    settings = ExportSettings(repo=work / "repo")
    release_runs([run], settings)
    elsewhere = settings.model_copy(update={"store": work / "elsewhere"})
    with untouched(work), pytest.raises(UsageError, match=r"serves film of the store .*expert_s"):
        release_runs([run], elsewhere)
    release_runs([run], elsewhere.model_copy(update={"overwrite": True}))


def test_a_bank_replaces_no_foreign_model_unless_told(
    work: Path, backbone: Any, task_file: Path
) -> None:
    run = write_run(work / "run", make_expert(backbone, sites=["*query"]), task_file)
    place = work / "repo" / BANK / "1"
    place.mkdir(parents=True)
    (place / "model.py").write_text("mine")
    settings = ExportSettings(repo=work / "repo")
    with untouched(work), pytest.raises(UsageError, match="pidep did not write, and this bank"):
        release_runs([run], settings)
    # A checkout of pidep has the shim there.
    shutil.copyfile(shipped(SHIM), place / SHIM)
    release_runs([run], settings)
    assert store_of(work).published().keys() == {"film"}


def test_a_merged_model_keeps_its_labels_and_replaces_no_foreign_model(
    work: Path, backbone: Any, task_file: Path
) -> None:
    run = write_run(work / "run", make_expert(backbone, sites=["*query"]), task_file)
    other = relabelled(backbone, work / "other", task_file)
    settings = ExportSettings(repo=work / "repo", form="merged")
    foreign = work / "repo" / "film" / "1" / "model.pt"
    foreign.parent.mkdir(parents=True)
    foreign.write_text("not pidep's")
    with untouched(work), pytest.raises(UsageError, match="film: holds a model that pidep did not"):
        release_runs([run], settings)
    release_runs([run], settings.model_copy(update={"overwrite": True}))
    with untouched(work), pytest.raises(ExpertError, match=r"'film': is .*labels bad, good"):
        release_runs([other], settings)


def test_a_folder_without_a_run_is_refused(work: Path) -> None:
    with untouched(work), pytest.raises(ExpertError, match="no such expert folder"):
        release_runs([work / "gone"], ExportSettings(repo=work / "repo"))


def test_a_store_in_a_files_place_is_refused(work: Path, backbone: Any, task_file: Path) -> None:
    run = write_run(work / "run", make_expert(backbone), task_file)
    (work / "store").touch()
    with untouched(work), pytest.raises(UsageError, match=r"`store` .*is a file; give a folder"):
        release_runs([run], ExportSettings(repo=work / "repo", store=work / "store"))


def test_a_moved_backbone_is_given_again_and_checked_by_its_digest(
    work: Path, backbone: Any, tiny_folder: Path, task_file: Path
) -> None:
    gone = replace(make_expert(backbone, sites=["*query"]), backbone=str(work / "gone"))
    run = write_run(work / "run", gone, task_file)
    settings = ExportSettings(repo=work / "repo")
    with untouched(work):
        with pytest.raises(BackboneError, match=r"gone': no such folder; .* as `backbone`"):
            release_runs([run], settings)
        other = save_tiny(work / "other", num_layers=1)
        with pytest.raises(ExpertError, match=r"made for backbone '.*other'"):
            release_runs([run], settings.model_copy(update={"backbone": str(other)}))
        shutil.rmtree(other)
    moved = settings.model_copy(update={"backbone": os.path.relpath(tiny_folder)})
    assert release_runs([run], moved).experts == {"film": gone.digest}
    assert store_of(work).published()["film"].backbone == str(tiny_folder)


def test_a_run_whose_data_have_moved_takes_another_task_file(
    work: Path, backbone: Any, task_file: Path
) -> None:
    run = write_run(work / "run", make_expert(backbone, sites=["*query"]), task_file)
    moved = task_file.parent / "moved"
    moved.mkdir()
    for path in (task_file, task_file.parent / "rows.jsonl"):
        path.rename(moved / path.name)
    with untouched(work), pytest.raises(TaskError, match=r"no such data file; .* give `task`"):
        release_runs([run], ExportSettings(repo=work / "repo"))
    settings = ExportSettings(repo=work / "repo", task=str(moved / task_file.name))
    assert release_runs([run], settings).experts.keys() == {"film"}


def test_the_metric_that_the_run_measured_on_the_same_rows(
    work: Path, backbone: Any, task_file: Path
) -> None:
    run = write_run(work / "run", make_expert(backbone, sites=["*query"]), task_file)
    settings = ExportSettings(repo=work / "repo")
    exported = release_runs([run], settings)
    found = exported.parity["film"].metric_torch
    rows = read_source(run, rows=RECIPE.parity_rows, task=str(task_file)).rows

    def record(value: float, digest: str) -> None:
        (run / "metrics.json").write_text(json.dumps({"backbone": 0.1, "own_expert": value}))
        (run / "provenance.json").write_text(json.dumps({"data": {"test": digest}}))

    record(found, data_digest(rows))
    release_runs([run], settings)
    record(found - 0.2, "sha256:other rows")
    release_runs([run], settings)
    record(found - 0.2, data_digest(rows))
    with (
        untouched(work),
        pytest.raises(ParityError, match=r"its run measured 0\.\d+; the"),
    ):
        release_runs([run], settings)
