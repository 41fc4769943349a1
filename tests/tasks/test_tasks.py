from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pidep.errors import TaskError
from pidep.tasks.data import Split, few_shot, hold_out, load_data
from pidep.tasks.task import load_task


def test_unknown_key_is_refused_with_a_suggestion(task_file: Path) -> None:
    task_file.write_text(task_file.read_text() + "metrc: accuracy\n")
    with pytest.raises(TaskError, match="unknown key 'metrc' \\(did you mean 'metric'\\?\\)"):
        load_task(task_file)


def test_unknown_task_lists_the_packaged_ones() -> None:
    with pytest.raises(TaskError, match="did you mean 'sentiment/movie'"):
        load_task("sentiment/movies")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            '{"sentence": "x", "label": "positive"}',
            "row 81: no column 'text'; the row has 'sentence', 'label'",
        ),
        ('{"text": "x", "label": "meh"}', "row 81: label 'meh' is not in the task's set"),
        ('{"text": " ", "label": "positive"}', "row 81: the text is empty"),
        ("{", "rows.jsonl, row 81: not a JSON object"),
    ],
)
def test_a_wrong_row_says_where(task_file: Path, row: str, message: str) -> None:
    rows = task_file.parent / "rows.jsonl"
    rows.write_text(rows.read_text() + row + "\n")
    with pytest.raises(TaskError, match=message):
        load_data(load_task(task_file))


def test_csv_and_jsonl_read_the_same(task_file: Path) -> None:
    import csv
    import json

    jsonl = task_file.parent / "rows.jsonl"
    table = task_file.parent / "rows.csv"
    with table.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, ["text", "label"])
        writer.writeheader()
        writer.writerows(json.loads(line) for line in jsonl.read_text().splitlines())
    first = load_data(load_task(task_file))
    task_file.write_text(task_file.read_text().replace("rows.jsonl", "rows.csv"))
    assert load_data(load_task(task_file)) == first


def test_no_text_is_on_both_sides(task_file: Path) -> None:
    data = load_data(load_task(task_file))
    assert data.test.rows
    assert not set(data.train.rows) & set(data.test.rows)


@given(st.lists(st.integers(0, 2), min_size=30, max_size=90), st.integers(1, 4), st.integers(0, 5))
def test_few_shot_takes_exactly_that_many(labels: list[int], shots: int, seed: int) -> None:
    split = Split([str(index) for index in range(len(labels))], labels)
    if min(labels.count(label) for label in set(labels)) < shots:
        with pytest.raises(TaskError, match="has only"):
            few_shot(split, shots=shots, seed=seed)
        return
    taken = few_shot(split, shots=shots, seed=seed)
    assert all(taken.labels.count(label) == shots for label in set(labels))
    assert len(set(taken.rows)) == len(taken.rows)


@given(st.lists(st.integers(0, 1), min_size=4, max_size=120))
def test_held_back_rows_are_never_trained_on(labels: list[int]) -> None:
    split = Split([str(index) for index in range(len(labels))], labels)
    train, validation = hold_out(split, fraction=0.1, seed=0)
    held = set(validation.rows) if validation else set()
    assert not held & set(train.rows)
    assert held | set(train.rows) == set(split.rows)
