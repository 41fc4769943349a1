"""The public API as a notebook uses it: lazy, typed, and on rows in memory."""

from __future__ import annotations

import ast
import inspect
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import pidep
from pidep.deployment.settings import ExportSettings, ServeSettings, SwapSettings
from pidep.errors import (
    BackboneError,
    ExpertError,
    PidepError,
    ServingError,
    TaskError,
    UsageError,
)
from pidep.inputs.row import Row
from pidep.lab.settings import CompareSettings
from pidep.settings import Settings, checked, settings_of
from pidep.tuning.run_folder import TuneResult
from pidep.tuning.settings import GenerateSettings, TuneSettings

PACKAGE = Path(pidep.__file__).parent
FILLERS, WORDS = ["a", "the", "film", "was", "very"], ["bad", "awful", "good", "great"]
ROWS = [
    {
        "text": f"{FILLERS[number % 5]} {FILLERS[number // 5 % 5]} {WORDS[number % 4]}",
        "label": ["negative", "positive"][number % 4 // 2],
    }
    for number in range(48)
]
QUICK: dict[str, Any] = {"steps": 2, "rank": 2, "batch_size": 8, "sites": ["*query"]}


# The package.


def test_the_import_loads_nothing_heavy() -> None:
    code = "import sys, pidep; dir(pidep); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert not loaded & {"numpy", "pydantic", "rich", "torch", "transformers", "typer", "yaml"}


def test_every_public_name_is_there() -> None:
    assert dir(pidep) == sorted(pidep.__all__) == pidep.__all__
    for name in pidep.__all__:
        assert getattr(pidep, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'tnue'"):
        _ = pidep.tnue  # type: ignore[attr-defined]


def test_export_is_the_function_and_the_package() -> None:
    from pidep.export import recipe

    assert pidep.export.recipe is recipe  # type: ignore[attr-defined]
    assert "recipe" in inspect.signature(pidep.export).parameters
    with pytest.raises(UsageError, match=r"export: unknown key 'recipy' \(did you mean 'recipe'"):
        pidep.export("run", recipy="x")


def faces() -> list[Path]:
    return sorted(PACKAGE.rglob("__init__.py"))


def public_names(path: Path) -> set[str]:
    """Names that a package's `__init__` defines, takes from its own modules, or offers lazily."""
    package = ".".join(path.parent.relative_to(PACKAGE.parent).parts)
    found: set[str] = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    lazy = [node for part in tree.body if isinstance(part, ast.If) for node in part.body]
    for node in [*tree.body, *lazy]:
        if isinstance(node, ast.ImportFrom):
            # Names from other packages are helpers, unless the package offers them lazily.
            if node in lazy or (node.module or "").startswith(f"{package}."):
                found |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return {name for name in found if not name.startswith("_")}


@pytest.mark.parametrize("path", faces(), ids=lambda path: str(path.parent.relative_to(PACKAGE)))
def test_the_face_of_a_package_is_exact(path: Path) -> None:
    parts = path.parent.relative_to(PACKAGE.parent).parts
    module = import_module(".".join(parts))
    assert module.__all__, "a package without public names"
    assert set(module.__all__) - {"__version__"} == public_names(path)
    for name in module.__all__:
        assert getattr(module, name) is not None


# Settings.

TAKES: dict[str, type[Settings]] = {
    "tune": TuneSettings,
    "compare": CompareSettings,
    "export": ExportSettings,
    "serve": ServeSettings,
    "swap": SwapSettings,
}


@pytest.mark.parametrize("name", TAKES)
def test_a_signature_has_the_settings_and_their_defaults(name: str) -> None:
    parameters = inspect.signature(getattr(pidep, name)).parameters
    for setting in settings_of(TAKES[name]):
        if not setting.required:
            found = parameters[setting.name].default
            assert found == TAKES[name].model_fields[setting.name].get_default(
                call_default_factory=True
            ), setting.name
            assert parameters[setting.name].kind is inspect.Parameter.KEYWORD_ONLY
    assert all(one.kind is not inspect.Parameter.VAR_KEYWORD for one in parameters.values())


@pytest.mark.parametrize("model", [*TAKES.values(), GenerateSettings])
def test_the_rows_of_the_documentation_are_the_settings(model: type[Settings]) -> None:
    rows = settings_of(model)
    assert [row.name for row in rows] == list(model.model_fields)
    for row in rows:
        assert row.help.endswith(".")
        assert row.panel
        assert row.type_text


def test_a_wrong_setting_is_named_before_anything_happens(tmp_path: Path) -> None:
    task = pidep.Task.from_rows(ROWS)
    with pytest.raises(UsageError, match=r"tune: unknown key 'rnk' \(did you mean 'rank'"):
        pidep.tune(task, out=tmp_path / "run", rnk=2)
    with pytest.raises(UsageError, match="tune: `rank`: expected at least 1, found 0"):
        pidep.tune(task, out=tmp_path / "run", rank=0)
    with pytest.raises(
        UsageError, match="interpolate: `pool` does not apply here: the helpers are"
    ):
        pidep.interpolate(task, ["expert"], pool="pool")
    with pytest.raises(UsageError, match="give `shots`, `full`, or both"):
        pidep.compare(["a", "b"], out=tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_place_or_backbone_is_refused_before_rows_are_written(tmp_path: Path) -> None:
    tasks = [pidep.Task.from_rows(ROWS, name=name) for name in ("one", "two")]
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(UsageError, match=f"`out` {place}: .*is a file; give a folder"):
            pidep.tune(tasks[0], out=place)
        with pytest.raises(UsageError, match=f"`out` {place}: .*is a file; give a folder"):
            pidep.compare(tasks, shots=[2], out=place)
    missing = str(tmp_path / "no-model")
    with pytest.raises(BackboneError, match="no-model"):
        pidep.tune(tasks[0], backbone=missing, out=tmp_path / "run")
    with pytest.raises(BackboneError, match="no-model"):
        pidep.compare(tasks, shots=[2], backbone=missing, out=tmp_path / "run")
    with pytest.raises(UsageError, match=r"compare: `tasks`: .*'one' is there twice"):
        pidep.compare([tasks[0], tasks[0]], shots=[2], out=tmp_path / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("out", ["a\0b", "a\ud83d"])
def test_a_folder_that_cannot_exist_is_refused(out: str) -> None:
    rows = [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}] * 20
    task = pidep.Task.from_rows(rows, labels={"x": "x", "y": "y"})
    with pytest.raises(UsageError, match=r"^`out` 'a.*: .*(zero byte|not UTF-8)"):
        pidep.tune(task, out=out)


def test_a_wrong_type_is_a_usage_error(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(UsageError, match="compare: `tasks`: expected at least 2 values, found 1"):
        pidep.compare("sentiment/movie", shots=8, out=out)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="compare: `tasks`: expected at least 2 values, found 1"):
        pidep.compare(pidep.Task.from_rows(ROWS), shots=8, out=out)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"compare: `shots`: .*integer.*found 'x'"):
        pidep.compare(["a", "b"], shots="x", out=out)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"tune: expected a task file, .*, found int"):
        pidep.tune(3, out=out)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"tune: `sites`: expected a list, found 1\.5"):
        pidep.tune("sentiment/movie", sites=1.5, out=out)
    for where, call in {
        "predict": lambda: pidep.predict(3, ["a film"]),  # type: ignore[arg-type]
        "interpolate": lambda: pidep.interpolate("sentiment/movie", [3]),  # type: ignore[list-item]
        "export": lambda: pidep.export(3, repo=out),  # type: ignore[arg-type]
        "swap": lambda: pidep.swap("film", 3),  # type: ignore[arg-type]
    }.items():
        with pytest.raises(UsageError, match=f"{where}: expected a run folder, .*, found int"):
            call()
    assert list(tmp_path.iterdir()) == []


def test_one_value_is_a_list_of_one() -> None:
    assert checked(TuneSettings, {"task": "a", "sites": "*query"}, where="tune").sites == (
        "*query",
    )
    values = {"tasks": ["a", "b"], "shots": 8, "methods": "own"}
    found = checked(CompareSettings, values, where="compare")
    assert (found.shots, found.methods) == ((8,), ("own",))


# From rows in memory to a model repository.


@pytest.fixture(scope="module")
def backbone(tiny_folder: Path) -> Any:
    """A loaded model with its tokenizer, as in a notebook."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(tiny_folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    return pidep.load_backbone(model, tokenizer=tokenizer)


@pytest.fixture(scope="module")
def tuned(backbone: Any, tmp_path_factory: pytest.TempPathFactory) -> TuneResult:
    folder = tmp_path_factory.mktemp("runs")
    task = pidep.Task.from_rows(ROWS, name="film", max_length=12)
    return pidep.tune(task, backbone=backbone, out=folder / "film", pool=folder / "pool", **QUICK)


def test_progress_and_result_of_a_run(
    backbone: Any, tmp_path: Path, capfd: Any, caplog: Any
) -> None:
    caplog.set_level("INFO", logger="pidep")
    steps: list[tuple[str, int, int]] = []

    def on_progress(phase: str, step: int, total: int, loss: float) -> None:
        steps.append((phase, step, total))

    task = pidep.Task.from_rows(ROWS, name="film", max_length=12)
    found = pidep.tune(
        task, backbone=backbone, out=tmp_path / "run", on_progress=on_progress, **QUICK
    )
    assert steps == [("film: own expert", 1, 2), ("film: own expert", 2, 2)]
    assert set(found.metrics) == {"majority", "probe", "backbone", "own_expert"}
    assert any(message.startswith("own expert: ") for message in caplog.messages)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("form", ["pandas", "datasets"])
def test_rows_of_pandas_and_of_datasets(form: str, backbone: Any, tmp_path: Path) -> None:
    module = import_module(form)
    rows = module.DataFrame(ROWS) if form == "pandas" else module.Dataset.from_list(ROWS)
    task = pidep.Task.from_rows(rows, name="film", max_length=12)
    one = pidep.tune(task, backbone=backbone, out=tmp_path / "one", **QUICK)
    same = pidep.Task.from_rows(ROWS, name="film", max_length=12)
    assert one.digest == pidep.tune(same, backbone=backbone, out=tmp_path / "two", **QUICK).digest


def test_predict_answers_texts_dicts_and_results(tuned: TuneResult, backbone: Any) -> None:
    texts = ["a great film", "awful"]
    found = pidep.predict(tuned, texts, backbone=backbone)
    assert [set(one.scores) for one in found] == [{"negative", "positive"}] * 2
    assert {one.digest for one in found} == {tuned.digest}
    rows = [{"text": text} for text in texts]
    # The backbone is found by its name, because this process has loaded it.
    assert pidep.predict(tuned.run, rows) == found
    with pytest.raises(UsageError, match="no column 'text'; the row has 'txt'"):
        pidep.predict(tuned, [{"txt": "a film"}])
    # One row alone counts as a list of one.
    assert pidep.predict(tuned, texts[0]) == pidep.predict(tuned, rows[0]) == found[:1]
    with pytest.raises(UsageError, match="predict: expected texts or dicts as rows, found int"):
        pidep.predict(tuned, [3])  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a \ud83d", r"^row 1: 'a \\ud83d' is not UTF-8"),
        (Row("a \ud83d"), r"^row 1: 'a \\ud83d' is not UTF-8"),
        ({"text": "a \ud83d"}, r"^row 1: .*half of a character"),
        ({"text": 10**5000}, r"^row 1: .*too long"),
    ],
)
def test_predict_refuses_texts_that_are_not_text(
    tuned: TuneResult, backbone: Any, row: Any, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        pidep.predict(tuned, [row], backbone=backbone)


def test_a_pool_and_given_experts(tuned: TuneResult, backbone: Any) -> None:
    pool = pidep.Pool(tuned.run.parent / "pool")
    assert list(pool) == ["film"]
    (near,) = pool.nearest(pool.embedding("film"), top_k=1)
    assert near.name == "film"
    # A task, a folder and a result have a name, so they are left out of their own neighbours.
    for target in ("film", tuned, tuned.run, str(tuned.run / "own")):
        assert pool.nearest(target) == []
    copy = tuned.run.parent / "copy"
    shutil.copytree(pool.folders["film"], copy / "two")
    shutil.copytree(pool.folders["film"], copy / "film")
    for target in ("film", tuned, tuned.run):
        assert [one.name for one in pidep.Pool(copy).nearest(target)] == ["two"]
    with pytest.raises(ExpertError, match=r"^flim: no task embedding .*did you mean 'film'"):
        pool.nearest("flim")
    task = pidep.Task.from_rows(ROWS, name="other", max_length=12)
    settings = {"steps": 2, "batch_size": 8, "policy": "frozen", "mixture_steps": 2}
    found = pidep.interpolate(task, [pool.expert("film")], backbone=backbone, **settings)
    assert isinstance(found.mixture, pidep.Mixture)
    assert isinstance(found.expert, pidep.Expert)
    assert found.experts == ("other", "film")
    assert found.expert.provenance["mixture_of"].keys() == {"other", "film"}
    (answer,) = pidep.predict(found.expert, ["a great film"], backbone=backbone)
    assert answer.digest == found.expert.digest
    with pytest.raises(UsageError, match="at least one helper"):
        pidep.interpolate(task, [])
    with pytest.raises(ExpertError, match="no such expert"):
        pidep.interpolate(task, ["nowhere"])


def test_interpolate_lists_its_settings_and_refuses_the_others(
    tuned: TuneResult, backbone: Any
) -> None:
    parameters = inspect.signature(pidep.interpolate).parameters
    assert {"lora_alpha", "rank_stabilized", "name", "policy", "steps"} <= parameters.keys()
    task = pidep.Task.from_rows(ROWS, name="other", max_length=12)
    for name, why in {
        "temperature": "only `policy=zero-shot` reads it",
        "test_limit": "no test rows are read",
        "pool": "the helpers are given",
        "kind": "the helpers decide it",
    }.items():
        assert name not in parameters
        with pytest.raises(UsageError, match=f"^interpolate: `{name}` does not apply here: {why}"):
            pidep.interpolate(task, tuned, **{name: None})
    # Whatever else `tune` takes, this takes too.
    rest = set(TuneSettings.model_fields) - parameters.keys()
    assert rest == {"kind", "sites", "rank", "pool", "top_k", "neighbours_by"} | {
        *("add_to_pool", "test_limit", "temperature")
    }
    with pytest.raises(UsageError, match=r"unknown key 'polcy' \(did you mean 'policy'\?\)"):
        pidep.interpolate(task, tuned, polcy="frozen")
    with pytest.raises(UsageError, match=r"^interpolate: `steps`: expected at least 1, found 0"):
        pidep.interpolate(task, tuned, steps=0)
    found = pidep.interpolate(
        task, tuned, backbone=backbone, steps=1, policy="uniform", lora_alpha=6, name="mine"
    )
    assert found.experts == ("mine", "film")
    same = pidep.interpolate(task, tuned, backbone=backbone, steps=1, policy="uniform", name="mine")
    assert same.expert.digest != found.expert.digest


def test_alpha_starts_from_the_similarity_of_the_helpers(tuned: TuneResult, backbone: Any) -> None:
    task = pidep.Task.from_rows(ROWS, name="other", max_length=12)
    settings = {"backbone": backbone, "steps": 1, "policy": "frozen", "mixture_steps": 0}
    found = pidep.interpolate(task, tuned, alpha_start="similarity", **settings)
    own, helper = next(iter(found.mixture.alphas().values()))
    # The own expert's similarity to itself is 1, and the rows are those of the helper.
    assert 0.5 < own < 0.6
    assert own + helper == pytest.approx(1)
    with pytest.raises(UsageError, match=r"helper 'film' has no task embedding; give the folder"):
        pidep.interpolate(
            task,
            pidep.Pool(tuned.run.parent / "pool").expert("film"),
            **settings,
            alpha_start="similarity",
        )
    with pytest.raises(UsageError, match=r"is of `fisher=empirical`, .*give `fisher=empirical`"):
        pidep.interpolate(task, tuned, **settings, alpha_start="similarity", fisher="true")


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"sites": ["nowhere"]}, ExpertError),
        ({"shots": 99}, PidepError),
        ({"pool": "pool", "policy": "zero-shot"}, PidepError),
        ({"kind": "prefix", "sites": ["*query"]}, ExpertError),
    ],
)
def test_a_wrong_request_about_rows_in_memory_leaves_nothing(
    backbone: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
    error: type[Exception],
) -> None:
    monkeypatch.chdir(tmp_path)
    task = pidep.Task.from_rows(ROWS, name="film", max_length=12)
    with pytest.raises(error):
        pidep.tune(task, backbone=backbone, out="run", **{**QUICK, **settings})
    assert list(tmp_path.iterdir()) == []


def test_a_row_that_no_file_can_hold_leaves_nothing(backbone: Any, tmp_path: Path) -> None:
    rows = [{**row, "more": {1, 2}} for row in ROWS]
    task = pidep.Task.from_rows(rows, name="film", max_length=12)
    with pytest.raises(TaskError, match=r"row 1: .*set is not JSON"):
        pidep.tune(task, backbone=backbone, out=tmp_path / "run", **QUICK)
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_comparison_of_rows_in_memory_leaves_nothing(backbone: Any, tmp_path: Path) -> None:
    tasks = [pidep.Task.from_rows(ROWS, name=name, max_length=12) for name in ("one", "two")]
    for wrong in ({"sites": ["nowhere"]}, {"methods": ["lorahub"], "kinds": ["bitfit"]}):
        with pytest.raises(PidepError):
            pidep.compare(tasks, shots=[2], backbone=backbone, out=tmp_path / "grid", **wrong)
    assert list(tmp_path.iterdir()) == []


def test_interpolate_refuses_two_experts_of_one_name(tuned: TuneResult, backbone: Any) -> None:
    other = pidep.Task.from_rows(ROWS, name="other", max_length=12)
    film = pidep.Task.from_rows(ROWS, name="film", max_length=12)
    with pytest.raises(UsageError, match=r"^interpolate: .*'film' is there twice"):
        pidep.interpolate(other, [tuned, tuned], backbone=backbone)
    with pytest.raises(UsageError, match=r"^interpolate: .*'film'.*give `name`"):
        pidep.interpolate(film, [tuned], backbone=backbone)


def test_an_interpolated_expert_is_exported(
    tuned: TuneResult, backbone: Any, tmp_path: Path
) -> None:
    task = pidep.Task.from_rows(ROWS, name="other", max_length=12)
    settings = {"steps": 2, "batch_size": 8, "policy": "frozen", "mixture_steps": 2}
    found = pidep.interpolate(task, tuned, backbone=backbone, **settings)
    with pytest.raises(UsageError, match=r"expert 'other': has no task, .*give `task`"):
        pidep.export(found, repo=tmp_path / "model_repo")
    exported = pidep.export(found, repo=tmp_path / "model_repo", task=task)
    assert found.by_reference is not None
    assert exported.experts == {"other": found.by_reference.digest}
    assert exported.parity["other"].argmax_flips == 0
    (answer,) = pidep.predict(found, ["a great film"], backbone=backbone)
    assert answer.digest == exported.experts["other"]
    again = pidep.export([found.expert, tuned], repo=tmp_path / "both", task=task)
    assert again.experts.keys() == {"other", "film"}
    with pytest.raises(ServingError):
        pidep.swap("other", found, repo=tmp_path / "both", url="127.0.0.1:1", timeout=0.5)


def test_a_run_over_rows_in_memory_is_exported_without_them(
    tuned: TuneResult, backbone: Any, tmp_path: Path
) -> None:
    exported = pidep.export(tuned, repo=tmp_path / "model_repo")
    assert exported.experts == {"film": tuned.digest}
    assert exported.parity["film"].argmax_flips == 0
    assert (tmp_path / "model_repo" / "pidep_bank" / "config.pbtxt").is_file()
    # No server is running: the swap fails before it publishes anything.
    with pytest.raises(ServingError):
        pidep.swap("film", tuned, repo=tmp_path / "model_repo", url="127.0.0.1:1", timeout=0.5)
    server = pidep.serve(tmp_path / "model_repo", http_port=18000)
    assert server.http_url == "127.0.0.1:18000"


def test_compare_takes_tasks_in_memory(backbone: Any, tmp_path: Path) -> None:
    tasks = [pidep.Task.from_rows(ROWS, name=name, max_length=12) for name in ("one", "two")]
    settings = {"rank": 2, "steps": 1, "epochs": 0, "full_steps": 1, "sites": ["*query"]}
    found = pidep.compare(
        tasks,
        shots=[2],
        seeds=[0],
        methods=["backbone", "own"],
        backbone=backbone,
        out=tmp_path / "grid",
        **settings,
    )
    assert found.missing == 0
    assert {path.name for path in (tmp_path / "grid").iterdir()} == {
        "cells",
        "pool",
        "summary.json",
    }
    assert {cell.task for cell in found.cells} == {"one", "two"}
