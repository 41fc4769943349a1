"""`check` lists every problem of a task's data, each with its place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pidep.errors import TaskError
from pidep.tasks.check import TaskCheck, check_task
from pidep.tasks.data import Split, load_data
from pidep.tasks.task import Task, load_task
from pidep.tuning.job import count_cut_texts
from tests.conftest import png

GOOD = [f"note {number}" for number in range(20)]


def task_file(folder: Path, lines: list[str], more: str = "") -> Path:
    body = "".join(f"{text},{'xy'[number % 2]}\n" for number, text in enumerate(GOOD))
    (folder / "a.csv").write_text("text,label\n" + body + "".join(f"{one}\n" for one in lines))
    (folder / "task.yaml").write_text(f"name: t\nlabels: [x, y]\ndata: {{path: a.csv}}\n{more}")
    return folder / "task.yaml"


def listed(found: TaskCheck) -> list[tuple[str, str, int | None, int | None]]:
    return [(one.severity, one.kind, one.row, one.line) for one in found.problems]


def test_every_wrong_row_is_listed_with_its_line(tmp_path: Path) -> None:
    wrong = ["a,z", " ,x", "alone", '"two', 'lines",q', "\u200b,w", "note 0,x", "note 1,x", "b,"]
    found = load_task(task_file(tmp_path, wrong)).check()
    assert sorted(listed(found), key=lambda one: one[2] or 0) == [
        ("error", "label", 21, 22),
        ("error", "empty", 22, 23),
        ("error", "row", 23, 24),
        ("error", "label", 24, 25),
        ("error", "empty", 25, 27),
        ("error", "label", 25, 27),
        ("warning", "duplicate", 26, 28),
        ("warning", "duplicate", 27, 29),
        ("error", "column", 28, 30),
    ]
    assert str(found.problems[0]).startswith(f"{tmp_path}/a.csv, row 21 (line 22): label 'z' is")
    same, other = sorted(found.problems[-2:], key=lambda one: one.row or 0)
    assert same.message == "is the same as row 1 (line 2)"
    assert other.message == (
        "is the same as row 2 (line 3), which has the label 'y'; here it is 'x'"
    )
    assert (found.errors, found.warnings) == (7, 2)
    json.dumps(found.to_json())


def test_good_data_has_no_problem_and_the_counts_of_load_data(tmp_path: Path) -> None:
    task = load_task(task_file(tmp_path, []))
    found, data = task.check(), load_data(task)
    assert found.problems == ()
    assert found.rows == {"train": len(data.train.rows), "test": len(data.test.rows)}
    assert found.labels == {
        name: {"train": data.train.labels.count(number), "test": data.test.labels.count(number)}
        for number, name in enumerate("xy")
    }


rows = st.lists(
    st.fixed_dictionaries(
        {
            "text": st.sampled_from(["a", "b", "c", "d", "", None, b"x", ["y"]]),
            "label": st.sampled_from(["x", "y", "z", "", None, 1]),
        }
    ),
    min_size=1,
    max_size=5,
)


@given(train=rows, test=rows)
def test_there_is_an_error_exactly_where_loading_fails(train: Any, test: Any) -> None:
    task = Task.from_rows(train, test=test, labels=["x", "y"])
    found = check_task(task)
    # Tuning wants a row of each label, too; loading does not.
    wrong = {one.kind for one in found.problems if one.severity == "error"} - {"classes"}
    if wrong:
        with pytest.raises(TaskError):
            load_data(task)
        return
    data = load_data(task)
    assert found.rows == {"train": len(data.train.rows), "test": len(data.test.rows)}


def test_rows_on_both_sides_and_labels_without_rows() -> None:
    train = [{"text": text, "label": "x"} for text in "abc"]
    found = Task.from_rows(train, test=train[:2], labels=["x", "y"]).check()
    assert [str(one) for one in found.problems] == [
        "training rows, row 1: is also a test row, test rows, row 1; training leaves it out",
        "training rows, row 2: is also a test row, test rows, row 2; training leaves it out",
        "no training row has the label 'y'",
    ]
    assert found.rows == {"train": 1, "test": 2}
    found = Task.from_rows(train, test=train, labels=["x", "y"]).check()
    assert [one.kind for one in found.problems if one.severity == "error"] == ["shared", "classes"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", None, "a.csv: no such data file"),
        ("a.csv", b"text,label\n", "a.csv: no rows"),
        ("a.csv", b"text,text,label\na,b,x\n", "column 'text' is there twice"),
        ("a.csv", b"text,label\na,x\ncaf\xe9,y\n", r"line 3: not readable as UTF-8"),
        ("a.parquet", b"no", "a.parquet: not readable"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_problem(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    files = {"path": tmp_path / name}
    found = Task.model_validate({"name": "t", "labels": ["x", "y"], "data": files}).check()
    [problem] = [one for one in found.problems if one.kind == "file"]
    assert message in str(problem)
    assert problem.severity == "error"


def test_images_that_cannot_be_read_are_listed(tmp_path: Path) -> None:
    (tmp_path / "no.png").write_bytes(b"no")
    images = [png(0), tmp_path / "no.png", tmp_path / "none.png", None, png(1)]
    table = [{"image": image, "label": "xy"[n % 2]} for n, image in enumerate(images)]
    task = Task.from_rows(table, test=[{"image": png(2), "label": "x"}], text="", image="image")
    assert [one.row for one in task.check().problems if one.row] == [2, 3, 4]


def test_candidates_and_targets_are_checked() -> None:
    table = [
        {"text": "a", "choices": ["p", "q"], "label": 5},
        {"text": "b", "choices": ["p"], "label": 0},
        {"text": "c", "choices": ["p", "q"], "label": 1},
    ]
    found = Task.from_rows(table, test=table[2:], candidates="choices").check()
    assert [(one.row, one.kind) for one in found.problems[:2]] == [(1, "label"), (2, "type")]
    table = [{"text": "a", "says": [None]}, {"text": "b", "says": " "}, {"text": "c", "says": "d"}]
    test = [{"text": "t", "says": "u"}]
    found = Task.from_rows(table, test=test, target="{says}", metric="bleu4").check()
    assert [(one.row, one.kind) for one in found.problems] == [(1, "column"), (2, "empty")]


def test_texts_that_are_cut_are_listed_and_counted(tiny: Any) -> None:
    texts = ["good film", "a very good film the film was", "bad " * 60, "awful"]
    table = [{"text": text, "label": "xy"[n % 2]} for n, text in enumerate(texts)]
    labels = {"x": "good", "y": "bad"}
    task = Task.from_rows(table, test=[{"text": "a", "label": "x"}], labels=labels, max_length=6)
    found = task.check(tiny)
    cut = [one for one in found.problems if one.kind == "length"]
    assert [str(one) for one in cut] == [
        "training rows, row 2: its text has 9 tokens and is cut at 6",
        "training rows, row 3: its text has 62 tokens and is cut at 6",
    ]
    assert found.cut_texts is not None
    lengths = found.cut_texts
    assert (lengths.texts, lengths.cut, lengths.longest, lengths.fitting) == (5, 2, 62, 32)
    assert [one.row for one in task.check(tiny, max_length=9).problems if one.row] == [3]
    assert task.check().cut_texts is None


def test_texts_that_the_tokenizer_drops_are_an_error(tiny: Any) -> None:
    table = [{"text": text, "label": "xy"[n % 2]} for n, text in enumerate(["a", "\ufffd\ufffd"])]
    task = Task.from_rows(table, test=table[:1], labels={"x": "good", "y": "bad"})
    [wrong] = [one for one in task.check(tiny).problems if one.kind == "empty"]
    assert str(wrong) == (
        "training rows, row 2: its text has no token for the backbone; remove the row"
    )
    rows = Split([row["text"] for row in table], [0, 1])
    with pytest.raises(TaskError, match=r"task 'task': the text .* has no token for the backbone"):
        count_cut_texts(task, tiny, [rows], 8)
    image = [{**row, "image": png(n)} for n, row in enumerate(table)]
    task = Task.from_rows(image, test=image, labels={"x": "good", "y": "bad"}, image="image")
    assert not [one for one in task.check(tiny).problems if one.kind == "empty"]


def test_labels_that_are_one_to_the_tokenizer_are_an_error(tiny: Any) -> None:
    table = [{"text": text, "label": "xy"[n % 2]} for n, text in enumerate("abcd")]
    for labels in ({"x": "Good film", "y": "good FILM"}, {"x": "zebra", "y": "lion"}):
        task = Task.from_rows(table, test=table[:2], labels=labels)
        assert any("have the same tokens" in one.message for one in task.check(tiny).problems)
        assert not any("tokens" in one.message for one in task.check().problems)
