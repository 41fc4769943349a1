"""Impossible requests to `pidep graph`, `export` and `import`: one line, nothing changed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pidep.artifacts import BankRecord
from pidep.experts.folder import read_expert
from pidep.export.recipe import shipped
from pidep.runtime.fit import check_expert
from pidep.serving.store import ExpertStore
from tests.cli.run import (
    Done,
    assert_refused,
    contents,
    untouched,
    write_pool,
    write_run,
)
from tests.cli.test_errors import Inside
from tests.conftest import make_expert


@pytest.mark.parametrize("pool", ["empty", "absent"])
def test_a_graph_of_an_empty_pool(work: Path, inside: Inside, pool: str) -> None:
    (work / "empty").mkdir()
    with untouched(work):
        assert_refused(
            inside("graph", pool, "--png", "graph.png"),
            rf"{pool}: 0 experts .* a task graph needs two",
        )


@pytest.mark.parametrize(
    "arguments",
    [
        ("--png", "graph.foo"),
        ("--png", "rows.jsonl/graph.png"),
        ("--graphml", "pool"),
        ("--png", "graph.png", "--graphml", "rows.jsonl/graph.graphml"),
    ],
)
def test_a_graph_that_cannot_be_written(
    work: Path, inside: Inside, tiny, arguments: tuple[str, ...]
) -> None:
    write_pool(
        work / "pool", make_expert(tiny, name="film"), make_expert(tiny, name="book", seed=1)
    )
    with untouched(work):
        assert_refused(
            inside("graph", "pool", *arguments), arguments[-2].lstrip("-") + "|" + arguments[-1]
        )


@pytest.fixture
def run(work: Path, tiny) -> Path:
    """A run whose expert acts on two sites only. Its graph compiles in half the time."""
    return write_run(work / "run", make_expert(tiny, sites=["*query"]), work / "film.yaml")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nope",), r"nope: no such expert folder"),
        (
            ("run", "--recipe", "onnx-cpu-in8"),
            r"no such recipe; there are onnx-cpu, .*did you mean 'onnx-cpu-int8'\?",
        ),
        (
            ("run", "--form", "merge"),
            r"export: --form: expected 'bank' or 'merged', found 'merge' \(did you mean 'merged'",
        ),
        (("run", "run", "--form", "merged"), r"--form merged: takes one run, found 2"),
        (("run", "run"), r"expected runs with different names, found film, film"),
        (("run/expert",), r"run/expert: has no task, .*give --task"),
        (("run", "--max-rank", 1), r"--max-rank 1: .* has rank 2"),
        (("run", "--repo", "rows.jsonl"), r"rows\.jsonl"),
        (("run", "--store", "rows.jsonl"), r"rows\.jsonl"),
    ],
)
def test_impossible_requests_to_export(
    work: Path, inside: Inside, run: Path, arguments: tuple[object, ...], message: str
) -> None:
    with untouched(work):
        assert_refused(inside("export", "--repo", "repo", *arguments), message)


@pytest.mark.parametrize("record", ["{", "{}", "[]"])
def test_a_run_whose_task_is_damaged(work: Path, inside: Inside, run: Path, record: str) -> None:
    (run / "task.json").write_text(record)
    with untouched(work):
        assert_refused(inside("export", "run", "--repo", "repo"), r"run/task\.json: ")


def test_a_merged_model_in_the_banks_place(work: Path, inside: Inside, tiny) -> None:
    write_run(work / "run", make_expert(tiny, name="pidep_bank"), work / "film.yaml")
    with untouched(work):
        assert_refused(inside("export", "run", "--repo", "repo", "--form", "merged"), r"pidep_bank")


def test_a_store_that_is_damaged_leaves_the_bank_as_it_is(
    work: Path, inside: Inside, run: Path
) -> None:
    (work / "expert_store").mkdir()
    (work / "expert_store" / "manifest.json").write_text("{")
    with untouched(work):
        assert_refused(
            inside("export", "run", "--repo", "repo"), r"manifest\.json: damaged manifest", code=1
        )


@pytest.mark.slow
def test_a_new_bank_holds_what_is_published_and_a_parity_failure_leaves_it(
    work: Path, inside: Inside, tiny, run: Path
) -> None:
    older = make_expert(tiny, name="book", rank=5, sites=["*key"])
    ExpertStore(work / "expert_store").publish(older, "book")
    assert inside("export", "run", "--repo", "repo").code == 0
    record = BankRecord.read(work / "repo" / "pidep_bank" / "1")
    check_expert(record, older)
    check_expert(record, read_expert(run / "expert"))
    assert {"repo/pidep_bank/config.pbtxt", "expert_store/manifest.json"} <= set(contents(work))
    shipped_recipe = shipped("export/onnx-cpu.yaml").read_text()
    (work / "strict.yaml").write_text(shipped_recipe.replace("max_abs: 0.001", "max_abs: 1.0e-12"))
    with untouched(work):
        done = inside("export", "run", "--repo", "repo", "--recipe", "strict.yaml")
        assert_refused(
            done,
            r"parity of 'film': max abs error is .*, the recipe allows 1e-12; .*nothing was "
            r"published",
            code=1,
        )


def adopt(inside: Inside, backbone: Path, *more: object) -> Done:
    return inside(
        "import", "lora", "--task", "film.yaml", "--backbone", backbone, "--out", "expert", *more
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("use_dora", True),
        ("peft_type", "IA3"),
        ("init_lora_weights", "pissa"),
        ("init_lora_weights", "olora"),
        ("alora_invocation_tokens", [1]),
        ("use_bdlora", {"nblocks": 2}),
        ("arrow_config", {"top_k": 1}),
        ("kasa_config", {"beta": 1}),
        ("lora_alpha", float("nan")),
    ],
)
def test_a_lora_that_cannot_be_honoured(
    work: Path, inside: Inside, lora: Path, tiny_folder: Path, key: str, value: object
) -> None:
    config = json.loads((lora / "adapter_config.json").read_text())
    (lora / "adapter_config.json").write_text(json.dumps({**config, key: value}))
    with untouched(work):
        assert_refused(adopt(inside, tiny_folder), rf"adapter_config\.json: .*{key}")


def test_a_lora_of_another_backbone(work: Path, inside: Inside, lora: Path) -> None:
    with untouched(work):
        assert_refused(
            adopt(inside, Path("minilm")), r"lora_A is \(2, 16\), the backbone needs \(2, 384\)"
        )


@pytest.mark.parametrize("out", ["film.yaml", ".", "notes", "film.yaml/expert"])
def test_an_import_over_what_is_no_expert(
    work: Path, inside: Inside, lora: Path, tiny_folder: Path, out: str
) -> None:
    (work / "notes").mkdir()
    (work / "notes" / "precious.txt").write_text("years of work")
    with untouched(work):
        assert_refused(adopt(inside, tiny_folder, "--out", out), out.replace(".", r"\."))
