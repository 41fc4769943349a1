"""Task files: what is accepted, and one clear line for everything else."""

from __future__ import annotations

from pathlib import Path

import pytest

from pidep.errors import TaskError
from pidep.tasks.packaged import packaged_tasks
from pidep.tasks.task import load_task

GOOD = """
name: mood
input: "{title}: {body}"
label: mood
labels: {sad: a sad note, glad: a glad note}
data: {path: rows.jsonl}
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "mood.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_reads_a_file(tmp_path: Path) -> None:
    task = load_task(write(tmp_path, GOOD))
    assert (task.name, task.template.columns, task.metric, task.max_length) == (
        "mood",
        ("title", "body"),
        "accuracy",
        48,
    )
    assert list(task.labels.items()) == [("sad", "a sad note"), ("glad", "a glad note")]
    assert task.data.path == tmp_path / "rows.jsonl", (
        "relative to the YAML, not to where pidep runs"
    )


@pytest.mark.parametrize("name", sorted(packaged_tasks()))
def test_packaged_tasks(name: str) -> None:
    task = load_task(name)
    assert task.data.packaged == name
    assert len(set(task.labels.values())) >= 2 or task.candidates == "choices"
    assert (list(task.labels) == ["negative", "positive"]) == name.startswith("sentiment/")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("label: mood", "labl: mood", r"mood\.yaml: unknown key 'labl' \(did you mean 'label'\?\)"),
        (
            "label: mood",
            "template: '{text}'",
            r"unknown key 'template', expected one of name, input, ",
        ),
        (
            "{path: rows.jsonl}",
            "{pth: rows.jsonl}",
            r"mood\.yaml: data: unknown key 'pth' \(did you mean 'path'\?\)",
        ),
        (
            "{path: rows.jsonl}",
            "{}",
            r"mood\.yaml: data: .*exactly one of packaged, path, files, dataset",
        ),
        (
            "{path: rows.jsonl}",
            "{path: a.jsonl, packaged: sentiment/movie}",
            r"exactly one of packaged, path, files, dataset",
        ),
        ("{path: rows.jsonl}", "{files: {train: a.csv}}", r"mood\.yaml: data"),
        ("name: mood", "name: ../mood", r"mood\.yaml: name: "),
        ("name: mood", "", r"mood\.yaml: name: Field required, found nothing"),
        ("{sad: a sad note, glad: a glad note}", "{sad: a sad note}", r"mood\.yaml: labels: "),
        ('"{title}: {body}"', "no columns", r"mood\.yaml: input 'no columns' names no column"),
        ('"{title}: {body}"', '"{title"', r"mood\.yaml: input: "),
        (
            "name: mood",
            "name: mood\ntest_fraction: 1.5",
            r"mood\.yaml: test_fraction: .*found '1\.5'",
        ),
        ("name: mood", "name: mood\nmetric: f1", r"mood\.yaml: metric: .*found 'f1'"),
        ("rows.jsonl", r'"\ud800.csv"', r"mood\.yaml: data: path: the path .* is not UTF-8"),
        ("rows.jsonl", r'"a\0.csv"', r"mood\.yaml: data: path: the path holds a zero byte"),
        (
            "{path: rows.jsonl}",
            "{path: a.csv, encoding: latin9x}",
            r"encoding 'latin9x': expected one",
        ),
        ("{path: rows.jsonl}", "{path: a.csv, encoding: base64}", r"encoding 'base64': expected"),
        (
            "{path: rows.jsonl}",
            "{path: a.csv, delimiter: ab}",
            r"data: delimiter: expected one char",
        ),
        ("{path: rows.jsonl}", "{path: a.csv, quoting: all}", r"data: quoting: .*found 'all'"),
        (
            "{path: rows.jsonl}",
            "{packaged: sentiment/nyt, delimiter: tab}",
            r"delimiter and quoting go with path or files",
        ),
        ("name: mood", "name: [", r"mood\.yaml: not readable as YAML"),
        (GOOD, "just text", r"mood\.yaml: expected a mapping .* found str"),
    ],
)
def test_refuses(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in GOOD
    path = write(tmp_path, GOOD.replace(old, new))
    with pytest.raises(TaskError, match=message) as caught:
        load_task(path)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_no_such_task_says_what_there_is() -> None:
    with pytest.raises(
        TaskError, match=r"sentiment/moive.*sentiment/nyt.*did you mean 'sentiment/movie'\?"
    ):
        load_task("sentiment/moive")
