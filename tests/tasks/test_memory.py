"""Tasks over rows in memory: the same rows from every form, and the same task from its files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pidep.errors import TaskError
from pidep.tasks.data import TaskData, data_digest, load_data
from pidep.tasks.memory import write_task
from pidep.tasks.task import Task, load_task
from tests.conftest import picture, png

ROWS = [
    {"text": f"row {number}: {['bad', 'good'][number % 2]}", "label": ["neg", "pos"][number % 2]}
    for number in range(40)
]


def digests(data: TaskData) -> tuple[str, str]:
    return data_digest(data.train), data_digest(data.test)


def as_pandas(rows: list[dict[str, Any]]) -> Any:
    import pandas

    return pandas.DataFrame(rows)


def as_dataset(rows: list[dict[str, Any]]) -> Any:
    import datasets

    names = ["neg", "pos"]
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)}
    )
    numbered = [{**row, "label": names.index(row["label"])} for row in rows]
    return datasets.Dataset.from_list(numbered, features=features)


@pytest.mark.parametrize("form", [list, as_pandas, as_dataset])
def test_every_form_has_the_same_rows_also_as_files(form: Any, tmp_path: Path) -> None:
    task = Task.from_rows(form(ROWS), name="mine")
    assert task.labels == {"neg": "neg", "pos": "pos"}
    data = load_data(task)
    assert digests(data) == digests(load_data(Task.from_rows(ROWS)))
    again = load_task(write_task(task, tmp_path))
    assert again.model_dump(exclude={"data"}) == task.model_dump(exclude={"data"})
    assert digests(load_data(again)) == digests(data)


def test_a_template_label_texts_and_test_rows_of_their_own(tmp_path: Path) -> None:
    train = [{"title": "a", "body": f"{number}", "stars": number % 2} for number in range(6)]
    test = [{"title": "b", "body": "x", "stars": 1}, {"title": "a", "body": "0", "stars": 0}]
    labels = {"0": "complaint", "1": "praise"}
    task = Task.from_rows(
        train, test=test, text="{title}: {body}", label="stars", labels=labels, max_length=8
    )
    data = load_data(task)
    assert data.test.rows == ["b: x", "a: 0"]
    assert data.test.labels == [1, 0]
    assert data.train.rows == ["a: 1", "a: 2", "a: 3", "a: 4", "a: 5"]  # "a: 0" is a test row
    assert task.labels == labels
    assert digests(load_data(load_task(write_task(task, tmp_path)))) == digests(data)


def test_images_in_memory_become_files(tmp_path: Path) -> None:
    (tmp_path / "one.png").write_bytes(png(1))
    kinds = [
        png(0),
        tmp_path / "one.png",
        {"bytes": png(2), "path": None},
        Image.fromarray(picture(3)),
    ]
    rows = [{"image": image, "label": "ab"[number % 2]} for number, image in enumerate(kinds)]
    task = Task.from_rows(rows[:2], test=rows[2:], text="", image="image", labels=["a", "b"])
    again = load_task(write_task(task, tmp_path / "task"))
    assert digests(load_data(again)) == digests(load_data(task))


def test_numbers_of_numpy_and_missing_labels(tmp_path: Path) -> None:
    rows = [{"text": "x", "label": np.int64(1)}, {"text": "y", "label": float("nan")}]
    task = Task.from_rows(rows, labels=["0", "1"])
    write_task(task, tmp_path)
    lines = (tmp_path / "rows.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"text": "x", "label": 1},
        {"text": "y", "label": None},
    ]


def test_a_task_of_files_is_written_too(tmp_path: Path, task_file: Path) -> None:
    task = load_task(task_file)
    assert load_task(write_task(task, tmp_path / "copy")) == task


@pytest.mark.parametrize(
    ("rows", "fields", "message"),
    [
        ("text", {}, "rows: expected a list of dicts, .*, found str"),
        ([1], {}, "row 1: expected a dict of columns, found int"),
        (ROWS, {"labls": {}}, r"unknown key 'labls' \(did you mean 'labels'\?\)"),
        (ROWS, {"labels": ["neg"]}, "labels: expected at least 2 labels"),
        (ROWS, {"data": {}}, "expected rows, found data"),
        (ROWS, {"metric": "bleu4"}, "metric 'bleu4'"),
    ],
)
def test_rows_and_fields_that_make_no_task(rows: Any, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        Task.from_rows(rows, **fields)


def test_a_wrong_row_is_named() -> None:
    with pytest.raises(TaskError, match="training rows, row 2: label 'other' is not in the task"):
        load_data(
            Task.from_rows([*ROWS[:1], {"text": "x", "label": "other"}], labels=["neg", "pos"])
        )
