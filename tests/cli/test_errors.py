"""A mistake is one line on stderr and an exit code, never a traceback, and leaves nothing
behind.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pidep.artifacts import BankRecord
from pidep.experts.folder import read_expert, write_expert
from pidep.export.recipe import shipped
from pidep.runtime.fit import check_expert
from pidep.serving.store import ExpertStore
from tests.cli.run import (
    Done,
    assert_refused,
    contents,
    nobody,
    pidep,
    untouched,
    write_pool,
    write_run,
)
from tests.conftest import make_expert

Inside = Callable[..., Done]
TASK = (
    "name: film\nlabels: {negative: negative, positive: positive}\ndata: {path: "
    "rows.jsonl}\nmax_length: 12\n"
)
TINY = ("--steps", 2, "--rank", 2, "--batch-size", 8)
WEIGHTS = "adapter_model.safetensors"
LONG = "x" * 300


def tune(inside: Inside, backbone: Path, *more: object, task: str = "film.yaml") -> Done:
    return inside("tune", task, "--backbone", backbone, "--out", "runs/film", *TINY, *more)


# Tasks and settings.


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("name: film", "name: [", r"film\.yaml: not readable as YAML"),
        (
            "name: film",
            "name: film\nlabl: x",
            r"film\.yaml: unknown key 'labl' \(did you mean 'label'\?\)",
        ),
        (
            "name: film",
            "name: film\ninput: '{title}'",
            r"rows\.jsonl, row 1: no column 'title'; the row has 'text', 'label'",
        ),
        ("name: film", "name: film\ninput: '{text:d}'", r"film\.yaml: input|row 1: .*'\{text:d\}'"),
        (
            "negative: negative",
            "neutral: neutral",
            r"rows\.jsonl, row 1: label 'negative' is not in the task's set \(neutral, positive\)",
        ),
        ("rows.jsonl", "gone.jsonl", r"gone\.jsonl: no such data file"),
        (TASK, "", r"film\.yaml: expected a mapping"),
    ],
)
def test_a_task_file_that_is_wrong(
    work: Path, inside: Inside, tiny_folder: Path, old: str, new: str, message: str
) -> None:
    (work / "film.yaml").write_text(TASK.replace(old, new))
    with untouched(work):
        assert_refused(tune(inside, tiny_folder), message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "lerning_rate: 1",
            r"tune\.yaml: unknown key 'lerning_rate' \(did you mean 'learning_rate'\?\)",
        ),
        ("{", r"tune\.yaml: not readable as YAML"),
        ("[1]", r"tune\.yaml: expected a mapping of settings, found list"),
        ("rank: 0", r"tune\.yaml: rank: .*found 0"),
    ],
)
def test_a_settings_file_that_is_wrong(work: Path, inside: Inside, text: str, message: str) -> None:
    (work / "tune.yaml").write_text(text)
    with untouched(work):
        assert_refused(inside("tune", "film.yaml", "--config", "tune.yaml"), message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--rank", 0), r"tune: --rank: expected at least 1, found 0"),
        (("--rank", 1000), r"tune: --rank: expected at most 256, found 1000"),
        (("--learning-rate", "nan"), r"tune: --learning-rate: expected a finite number, found nan"),
        (
            ("--alpha-start", "anywhere"),
            r"--alpha-start: expected 'uniform' or 'similarity', found 'anywhere'",
        ),
        (
            ("--kind", "lorra"),
            r"--kind: expected one of .*, found 'lorra' \(did you mean 'lora'\?\)",
        ),
        (("--seed", -1), r"--seed: expected at least 0, found -1"),
        (("--rank", "many"), r"--rank: expected a valid integer.*, found 'many'"),
        (("--rnk", 2), r"No such option: --rnk .*--rank"),
    ],
)
def test_a_flag_that_is_out_of_range(
    work: Path, inside: Inside, arguments: tuple[object, ...], message: str
) -> None:
    with untouched(work):
        assert_refused(inside("tune", "film.yaml", *arguments), message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("infer", "x", "--expert", "film", "--batch-size", 0), "infer: --batch-size: .*found 0"),
        (("swap", "film", "run", "--timeout", 0), "--timeout"),
        (("export",), "RUNS"),
        (("import", "folder"), "--task"),
        (("tnue",), "tnue"),
    ],
)
def test_a_command_line_that_does_not_parse(
    work: Path, inside: Inside, arguments: tuple[object, ...], message: str
) -> None:
    with untouched(work):
        assert_refused(inside(*arguments), message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--name", "../film"), r"expert name '\.\./film'"),
        (("--sites", "decoder.*"), r"sites 'decoder\.\*': matches no"),
        (("--shots", 1000), r"has only \d+ training rows"),
        (("--helper", "film.yaml"), r"helpers: need --pool"),
        (("--out", "rows.jsonl"), r"rows\.jsonl: is a file"),
        (("--out", "rows.jsonl/run"), r"rows\.jsonl"),
        (("--pool", "rows.jsonl"), r"rows\.jsonl"),
        (("--pool", "other"), r"other/film"),
        (("--backbone", "."), r"backbone '.*': expected"),
    ],
)
def test_impossible_requests_to_tune(
    work: Path, inside: Inside, tiny_folder: Path, arguments: tuple[object, ...], message: str
) -> None:
    (work / "other" / "film").mkdir(parents=True)
    (work / "other" / "film" / "precious.txt").write_text("years of work")
    with untouched(work):
        assert_refused(tune(inside, tiny_folder, *arguments), message)


def test_a_truncated_backbone(work: Path, inside: Inside, tiny_folder: Path) -> None:
    (work / "backbone").mkdir()
    for path in tiny_folder.iterdir():
        data = path.read_bytes()
        (work / "backbone" / path.name).write_bytes(
            data[:-100] if path.name == "model.safetensors" else data
        )
    with untouched(work):
        assert_refused(tune(inside, Path("backbone")), r"backbone '.*/backbone': expected")


@pytest.mark.parametrize("record", ["{}", "[]", "{"])
def test_a_damaged_checkpoint(work: Path, inside: Inside, tiny_folder: Path, record: str) -> None:
    checkpoint = work / "runs" / "film" / "checkpoint" / "own"
    checkpoint.mkdir(parents=True)
    (checkpoint / "progress.json").write_text(record)
    (checkpoint / "state.safetensors").write_bytes((tiny_folder / "model.safetensors").read_bytes())
    with untouched(work):
        assert_refused(tune(inside, tiny_folder, "--resume"), r"checkpoint/own: damaged checkpoint")


def test_a_flipped_bit_in_a_checkpoint(work: Path, inside: Inside, tiny_folder: Path) -> None:
    assert tune(inside, tiny_folder).code == 0
    flip(work / "runs" / "film" / "checkpoint" / "own" / "state.safetensors")
    with untouched(work):
        assert_refused(tune(inside, tiny_folder, "--resume"), r"checkpoint/own: damaged checkpoint")


# Experts.


def truncate(folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[:-5])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)


def poison(path: Path) -> None:
    """Put a NaN into the first tensor. pidep itself does not write one."""
    tensors = load_file(path)
    name = min(tensors)
    tensors[name][0, 0] = np.nan
    save_file(tensors, path)


def damaged(folder: Path, damage: str) -> None:
    if damage == "truncated":
        truncate(folder)
    elif damage == "flipped":
        flip(folder / WEIGHTS)
    elif damage == "nan":
        poison(folder / WEIGHTS)


def sick_expert(backbone: Any, damage: str, name: str = "film") -> Any:
    expert = make_expert(backbone, name=name)
    if damage == "stranger":
        return replace(expert, backbone_digest="sha256:" + "0" * 64)
    return expert


SICK = {
    "truncated": r"adapter_model\.safetensors: truncated or damaged",
    "flipped": r"digest mismatch",
    "nan": r"lora_A\.weight holds NaN",
    "stranger": r"expert of another backbone|made for backbone",
}


@pytest.mark.parametrize("damage", list(SICK))
def test_tuning_with_a_damaged_expert_in_the_pool(
    work: Path, inside: Inside, tiny, tiny_folder: Path, damage: str
) -> None:
    write_pool(work / "pool", sick_expert(tiny, damage, name="other"))
    damaged(work / "pool" / "other", damage)
    with untouched(work):
        assert_refused(tune(inside, tiny_folder, "--pool", "pool"), SICK[damage])


@pytest.mark.parametrize("damage", ["nan", "negative", "other tensors", "other rank"])
def test_tuning_beside_a_task_embedding_that_does_not_fit(
    work: Path, inside: Inside, tiny, tiny_folder: Path, damage: str
) -> None:
    write_pool(
        work / "pool", make_expert(tiny, name="other", rank=3 if damage == "other rank" else 2)
    )
    path = work / "pool" / "other" / "fisher.safetensors"
    factor = np.float32({"nan": np.nan, "negative": -1.0}.get(damage, 1.0))
    embedding = {name: array * factor for name, array in load_file(path).items()}
    save_file({"x": np.ones(1, np.float32)} if damage == "other tensors" else embedding, path)
    with untouched(work):
        assert_refused(tune(inside, tiny_folder, "--pool", "pool"), r"pool/other")


@pytest.mark.parametrize("damage", [damage for damage in SICK if damage != "stranger"])
def test_a_graph_with_a_damaged_expert(work: Path, inside: Inside, tiny, damage: str) -> None:
    write_pool(work / "pool", make_expert(tiny, name="well"), sick_expert(tiny, damage))
    damaged(work / "pool" / "film", damage)
    with untouched(work):
        assert_refused(inside("graph", "pool", "--png", "graph.png"), SICK[damage])


@pytest.mark.parametrize("form", ["bank", "merged"])
@pytest.mark.parametrize("damage", list(SICK))
def test_exporting_a_damaged_expert(
    work: Path, inside: Inside, tiny, damage: str, form: str
) -> None:
    write_run(work / "run", sick_expert(tiny, damage), work / "film.yaml")
    damaged(work / "run" / "expert", damage)
    with untouched(work):
        assert_refused(inside("export", "run", "--repo", "repo", "--form", form), SICK[damage])


@pytest.mark.parametrize("damage", [damage for damage in SICK if damage != "stranger"])
def test_swapping_in_a_damaged_expert(work: Path, inside: Inside, tiny, damage: str) -> None:
    write_run(work / "run", sick_expert(tiny, damage), work / "film.yaml")
    damaged(work / "run" / "expert", damage)
    with untouched(work):
        assert_refused(inside("swap", "film", "run", "--url", nobody()), SICK[damage])


# Graph.


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


# Export.


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
            r"parity of 'film': max abs error is .*, the recipe allows 1e-12; nothing was "
            r"published",
            code=1,
        )


# Import.


@pytest.fixture
def lora(work: Path, tiny) -> Path:
    """A folder as PEFT writes it."""
    write_expert(make_expert(tiny), work / "lora")
    return work / "lora"


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


@pytest.mark.parametrize(
    "arguments",
    [
        ("tune", LONG),
        ("export", LONG),
        ("serve", LONG),
        ("graph", LONG),
        ("swap", "film", LONG),
        ("import", "lora", "--task", "film.yaml", "--backbone", "{backbone}", "--out", LONG),
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_path_that_cannot_be_written(
    work: Path, inside: Inside, lora: Path, tiny_folder: Path, arguments: tuple[str, ...]
) -> None:
    with untouched(work):
        assert_refused(
            inside(*(part.format(backbone=tiny_folder) for part in arguments)), "xxx", code=1
        )


def test_a_settings_file_that_cannot_be_opened(work: Path, inside: Inside) -> None:
    with untouched(work):
        assert_refused(inside("tune", "film.yaml", "--config", LONG), "xxx")


@pytest.mark.parametrize("out", ["film.yaml", ".", "notes", "film.yaml/expert"])
def test_an_import_over_what_is_no_expert(
    work: Path, inside: Inside, lora: Path, tiny_folder: Path, out: str
) -> None:
    (work / "notes").mkdir()
    (work / "notes" / "precious.txt").write_text("years of work")
    with untouched(work):
        assert_refused(adopt(inside, tiny_folder, "--out", out), out.replace(".", r"\."))


# Real processes: no library may print to stderr.


def test_a_real_process_that_draws(work: Path) -> None:
    with untouched(work):
        assert_refused(
            pidep("graph", ".", "--png", "graph.png", cwd=work), "a task graph needs two"
        )


def test_a_real_process_that_exports(work: Path, tiny) -> None:
    write_run(work / "run", sick_expert(tiny, "truncated"), work / "film.yaml")
    damaged(work / "run" / "expert", "truncated")
    with untouched(work):
        assert_refused(pidep("export", "run", "--repo", "repo", cwd=work), SICK["truncated"])
