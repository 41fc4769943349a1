"""A mistake is one line on stderr and an exit code, never a traceback, and leaves nothing
behind.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.cli.run import (
    Done,
    assert_refused,
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


# Export.


# Import.


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
