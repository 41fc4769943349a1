"""A run replaces nothing of another run, in its folder and in its pool, without being told to."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pidep.errors import ExpertError, UsageError
from pidep.experts.folder import read_expert, write_expert
from pidep.inputs.template import Template
from pidep.settings import checked
from pidep.tasks.task import Task
from pidep.tuning import fold_expert
from pidep.tuning.import_peft import import_peft
from pidep.tuning.settings import FoldSettings, ImportSettings, TuneSettings
from pidep.tuning.tune import tune
from tests.cli.run import contents
from tests.conftest import make_expert

TINY = {"steps": 2, "batch_size": 8, "mixture_steps": 1, "rank": 1, "fisher_samples": 4, "top_k": 0}


@pytest.fixture
def run(tiny_folder: Path, tmp_path: Path):  # type: ignore[no-untyped-def]
    def call(task: Path, out: str, *, resume: bool = False, overwrite: bool = False, **more: Any):  # type: ignore[no-untyped-def]
        given = {**TINY, "task": str(task), "backbone": str(tiny_folder), **more}
        place = tmp_path / out
        return tune(
            checked(TuneSettings, given, where="tune"), place, resume=resume, overwrite=overwrite
        )

    return call


def other_task(task_file: Path, name: str, old: str, new: str) -> Path:
    path = task_file.with_name(name)
    path.write_text(task_file.read_text().replace(old, new))
    return path


def test_a_finished_run_is_replaced_only_when_told(
    run: Any, task_file: Path, tmp_path: Path
) -> None:
    first = run(task_file, "run")
    before = contents(tmp_path / "run")
    message = (
        rf"run: holds expert 'film' \({first.digest[:19]}…, labels negative, positive, "
        r"template '\{text\}'\), and this run of expert 'film'.* would replace it; .*`overwrite`"
    )
    with pytest.raises(UsageError, match=message):
        run(task_file, "run")
    with pytest.raises(UsageError, match=r"with other settings \(seed\)"):
        run(task_file, "run", resume=True, seed=1)
    assert contents(tmp_path / "run") == before
    assert run(task_file, "run", resume=True).digest == first.digest
    assert run(task_file, "run", overwrite=True, seed=1).digest != first.digest


def test_a_finished_run_is_not_resumed_with_another_task(
    run: Any, task_file: Path, tmp_path: Path
) -> None:
    run(task_file, "run")
    shutil.rmtree(tmp_path / "run" / "checkpoint")
    turned = other_task(task_file, "turned.yaml", "negative: negative", "negative: a bad film")
    with pytest.raises(
        UsageError, match=r"holds expert 'film' .* of another task, data or setting"
    ):
        run(turned, "run", resume=True)


def test_an_interrupted_run_is_resumed_or_overwritten(
    run: Any, task_file: Path, tmp_path: Path
) -> None:
    first = run(task_file, "run")
    for name in ("own", "expert", "result.json", "config.yaml"):
        path = tmp_path / "run" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(UsageError, match=r"checkpoint of an interrupted run.*`resume` to continue"):
        run(task_file, "run")
    assert run(task_file, "run", resume=True).digest == first.digest


@pytest.mark.parametrize("name", ["config.yaml", "metrics.json", "task.json"])
def test_files_of_a_project_are_replaced_only_when_told(
    run: Any, task_file: Path, tmp_path: Path, name: str
) -> None:
    project = tmp_path / "project"
    project.mkdir()
    (project / "notes.txt").write_text("mine")
    (project / name).write_text("mine")
    for resume in (False, True):
        with pytest.raises(UsageError, match=rf"project: holds {name} and no run, .*`overwrite`"):
            run(task_file, "project", resume=resume)
    assert contents(project) == {"notes.txt": b"mine", name: b"mine"}


def test_rows_in_memory_replace_no_folder_of_data(
    tiny: Any, task_file: Path, tmp_path: Path
) -> None:
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    task = Task.from_rows(rows, max_length=12, name="film")
    (tmp_path / "project" / "data").mkdir(parents=True)
    (tmp_path / "project" / "data" / "raw.csv").write_text("mine")
    config = checked(TuneSettings, {**TINY, "task": "film", "backbone": "tiny"}, where="tune")
    with pytest.raises(UsageError, match="data: holds data that no run has written"):
        tune(config, tmp_path / "project", task=task, backbone=tiny, overwrite=True)
    assert contents(tmp_path / "project" / "data") == {"raw.csv": b"mine"}
    assert tune(config, tmp_path / "run", task=task, backbone=tiny).digest
    assert tune(config, tmp_path / "run", task=task, backbone=tiny, overwrite=True).digest


def test_a_run_goes_into_a_folder_with_other_files(
    run: Any, task_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "notes.txt").write_text("mine")
    run(task_file, "project")
    assert (tmp_path / "project" / "notes.txt").read_text() == "mine"


def test_a_pools_expert_is_replaced_by_its_own_run_only(
    run: Any, task_file: Path, tmp_path: Path
) -> None:
    pool = tmp_path / "pool"
    first = run(task_file, "one", pool=pool)
    # The same rows and settings train the same expert: nothing is lost.
    assert run(task_file, "two", pool=pool).digest == first.digest
    labels = "labels: {bad: negative, good: positive}\nlabel: mood"
    namesake = other_task(
        task_file, "namesake.yaml", "labels: {negative: negative, positive: positive}", labels
    )
    rows = task_file.with_name("rows.jsonl")
    rows.write_text(
        rows.read_text()
        .replace('"label": "negative"', '"label": "negative", "mood": "bad"')
        .replace('"label": "positive"', '"label": "positive", "mood": "good"')
    )
    before = contents(pool)
    message = (
        "pool/film: holds expert 'film' .*labels negative, positive.*"
        "and expert 'film' .labels bad, good, .*would replace it; choose another `name`"
    )
    with pytest.raises(UsageError, match=message):
        run(namesake, "three", pool=pool)
    assert contents(pool) == before
    assert not (tmp_path / "three").exists()
    run(namesake, "three", pool=pool, name="mood")
    run(namesake, "four", pool=pool, overwrite=True)
    assert read_expert(pool / "film").labels == ("bad", "good")


def test_a_helper_is_the_task_of_its_name(run: Any, task_file: Path, tmp_path: Path) -> None:
    pool = tmp_path / "pool"
    run(task_file, "one", pool=pool)
    other = other_task(task_file, "other.yaml", "name: film", "name: other")
    shouted = other_task(task_file, "shouted.yaml", "name: film", "name: film\ninput: '{text}!'")
    with pytest.raises(ExpertError, match=r"pool/film: holds expert .* and helper .*shouted.yaml"):
        run(other, "two", pool=pool, helpers=[str(shouted)], top_k=1)
    again = task_file.with_name("again.yaml")
    shutil.copyfile(task_file, again)
    with pytest.raises(UsageError, match=r"film.yaml and .*again.yaml are both called 'film'"):
        run(other, "two", pool=pool, helpers=[str(task_file), str(again)], top_k=1)
    with pytest.raises(UsageError, match=r"again.yaml has the name of this run's expert, 'film'"):
        run(task_file, "two", pool=pool, helpers=[str(again)], top_k=1)


def test_fold_replaces_an_expert_only_when_told(tiny: Any, tmp_path: Path) -> None:
    expert = make_expert(tiny)
    source, out = write_expert(expert, tmp_path / "e"), tmp_path / "out"
    other = write_expert(make_expert(tiny, name="book", seed=3), out)
    settings = FoldSettings(run=source, rank=2, out=out)
    with pytest.raises(UsageError, match=r"out: holds expert 'book' .* a smaller expert 'film'"):
        fold_expert(settings)
    assert read_expert(other).name == "book"
    fold_expert(settings.model_copy(update={"overwrite": True}))
    assert read_expert(out).name == "film"
    with pytest.raises(UsageError, match="would replace it"):
        fold_expert(settings.model_copy(update={"out": source}))


def test_import_replaces_an_expert_only_when_told(
    tiny: Any, tiny_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    source = write_expert(make_expert(tiny), tmp_path / "lora")
    out = write_expert(make_expert(tiny, name="book", seed=3), tmp_path / "out")
    given = {"folder": source, "task": str(task_file), "backbone": str(tiny_folder), "out": out}
    message = r"out: holds expert 'book' .* and expert 'film' .*template '\{text\}'.* from .*lora"
    with pytest.raises(UsageError, match=message):
        import_peft(ImportSettings(**given))
    assert read_expert(out).name == "book"
    imported = import_peft(ImportSettings(**given, overwrite=True))
    assert read_expert(out).digest == imported.digest
    assert imported.template == Template("{text}")
