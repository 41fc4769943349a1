"""Rows to splits: every fault is named, no text is on both sides, shots are exact."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pidep.errors import TaskError
from pidep.tasks.data import Split, data_digest, few_shot, hold_out, limit, load_data
from pidep.tasks.task import Task

LABELS = {"sad": "a sad note", "glad": "a glad note"}
ROWS = [{"text": f"note {number}", "mood": ("sad", "glad")[number % 2]} for number in range(60)]


def task(**changes: Any) -> Task:
    fields = {"name": "mood", "label": "mood", "labels": LABELS, **changes}
    return Task.model_validate(fields)


def jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def delimited(path: Path, delimiter: str) -> Path:
    lines = [
        delimiter.join(("text", "mood")),
        *(delimiter.join((row["text"], row["mood"])) for row in ROWS),
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def parquet(path: Path) -> Path:
    import pyarrow
    from pyarrow import parquet as format_

    format_.write_table(pyarrow.Table.from_pylist(ROWS), path)
    return path


def test_every_format_gives_the_same_rows(tmp_path: Path) -> None:
    files = [
        jsonl(tmp_path / "a.jsonl", ROWS),
        delimited(tmp_path / "a.csv", ","),
        delimited(tmp_path / "a.tsv", "\t"),
        parquet(tmp_path / "a.parquet"),
    ]
    loaded = [load_data(task(data={"path": file})) for file in files]
    assert len(loaded[0].train.rows) + len(loaded[0].test.rows) == 60
    assert all(data == loaded[0] for data in loaded)
    first = loaded[0].train
    assert all(
        label == int(text.split()[1]) % 2
        for text, label in zip(first.rows, first.labels, strict=True)
    )


def test_template_joins_columns(tmp_path: Path) -> None:
    path = jsonl(
        tmp_path / "a.jsonl", [{"a": f"x{n}", "b": f"y{n}", "mood": "sad"} for n in range(20)]
    )
    data = load_data(task(input="{a} then {b}", data={"path": path}))
    assert set(data.train.rows + data.test.rows) == {f"x{n} then y{n}" for n in range(20)}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"mood": "sad"}, r"a\.jsonl, row 3: no column 'text'; the row has 'mood'"),
        ({"text": "x"}, r"a\.jsonl, row 3: no column 'mood'; the row has 'text'"),
        ({"text": "x", "mood": None}, r"a\.jsonl, row 3: column 'mood' is empty \(null\)"),
        (
            {"text": "x", "mood": "angry"},
            r"a\.jsonl, row 3: label 'angry' is not in the task's set \(sad, glad\)",
        ),
        ({"text": "  ", "mood": "sad"}, r"a\.jsonl, row 3: the text is empty"),
        (["x", "sad"], r"a\.jsonl, row 3: expected an object with columns, found list"),
    ],
)
def test_a_wrong_row_is_named(tmp_path: Path, row: Any, message: str) -> None:
    path = jsonl(tmp_path / "a.jsonl", [*ROWS[:2], row, *ROWS[2:]])
    with pytest.raises(TaskError, match=message) as caught:
        load_data(task(data={"path": path}))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.jsonl",
            b'{"text": "x", "mood": "sad"}\n{"text": ',
            r"a\.jsonl, row 2: not a JSON object",
        ),
        ("a.jsonl", b"\xff\xfe{", r"a\.jsonl: not readable"),
        ("a.csv", b"text,mood\n", r"a\.csv: no rows"),
        ("a.parquet", b"not parquet", r"a\.parquet: not readable"),
        (
            "a.xlsx",
            b"",
            r"a\.xlsx: expected \.csv, \.tsv, \.json, \.jsonl or \.parquet, found '\.xlsx'",
        ),
    ],
)
def test_an_unreadable_file_is_named(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TaskError, match=message):
        load_data(task(data={"path": tmp_path / name}))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"nowhere\.jsonl: no such data file"):
        load_data(task(data={"path": tmp_path / "nowhere.jsonl"}))


def test_an_empty_side_is_refused(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"text": "same", "mood": "sad"}] * 5)
    with pytest.raises(TaskError, match=r"task 'mood': no (training|test) rows are left"):
        load_data(task(data={"path": path}))


@settings(max_examples=50, deadline=None)
@given(
    texts=st.lists(
        st.text(alphabet="abc ", min_size=1).filter(str.strip), min_size=20, max_size=60
    ),
    seed=st.integers(0, 5),
)
def test_no_text_on_both_sides(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], seed: int
) -> None:
    folder = tmp_path_factory.mktemp("leak")
    path = jsonl(folder / "a.jsonl", [{"text": text, "mood": "sad"} for text in texts])
    try:
        data = load_data(task(data={"path": path}, split_seed=seed, test_fraction=0.5))
    except TaskError:
        return  # all texts are on one side
    assert not set(data.train.rows) & set(data.test.rows)
    assert set(data.train.rows) | set(data.test.rows) == {text.strip() for text in texts}


def test_separate_files_do_not_leak(tmp_path: Path) -> None:
    train, test = jsonl(tmp_path / "train.jsonl", ROWS), jsonl(tmp_path / "test.jsonl", ROWS[:7])
    data = load_data(task(data={"files": {"train": train, "test": test}}))
    assert (len(data.train.rows), len(data.test.rows)) == (53, 7)


def test_the_split_depends_on_text_and_seed_only(tmp_path: Path) -> None:
    forward = load_data(task(data={"path": jsonl(tmp_path / "a.jsonl", ROWS)}))
    backward = load_data(task(data={"path": jsonl(tmp_path / "b.jsonl", ROWS[::-1])}))
    other = load_data(task(data={"path": tmp_path / "a.jsonl"}, split_seed=1))
    assert set(forward.test.rows) == set(backward.test.rows) != set(other.test.rows)
    assert 4 <= len(forward.test.rows) <= 22, "about a fifth of 60"


def numbered(*counts: int) -> Split:
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    return Split([f"row {number}" for number in range(len(labels))], labels)


@given(shots=st.integers(1, 8), seed=st.integers(0, 100))
def test_few_shot_is_exact(shots: int, seed: int) -> None:
    drawn = few_shot(numbered(8, 30, 11), shots=shots, seed=seed)
    assert [drawn.labels.count(label) for label in range(3)] == [shots] * 3
    assert len(set(drawn.rows)) == 3 * shots
    assert drawn == few_shot(numbered(8, 30, 11), shots=shots, seed=seed)


def test_few_shot_draws_by_seed() -> None:
    draws = {tuple(few_shot(numbered(50, 50), shots=4, seed=seed).rows) for seed in range(5)}
    assert len(draws) == 5


def test_few_shot_needs_enough_rows() -> None:
    with pytest.raises(TaskError, match=r"shots 9: label number 0 has only 8 training rows"):
        few_shot(numbered(8, 30), shots=9, seed=0)


@given(
    counts=st.tuples(st.integers(20, 60), st.integers(20, 60)),
    fraction=st.floats(0.05, 0.5),
    seed=st.integers(0, 9),
)
def test_hold_out_is_stratified_and_complete(
    counts: tuple[int, int], fraction: float, seed: int
) -> None:
    whole = numbered(*counts)
    train, validation = hold_out(whole, fraction=fraction, seed=seed)
    assert validation is not None
    assert sorted(train.rows + validation.rows) == sorted(whole.rows)
    for label, count in enumerate(counts):
        assert validation.labels.count(label) == max(1, round(count * fraction))


def test_hold_out_leaves_few_rows_alone() -> None:
    whole = numbered(8, 8)
    assert hold_out(whole, fraction=0.1, seed=0) == (whole, None)


def test_limit() -> None:
    whole = numbered(20, 20)
    assert limit(whole, None, seed=0) == limit(whole, 40, seed=0) == whole
    assert len(set(limit(whole, 7, seed=0).rows)) == 7
    assert limit(whole, 7, seed=0) != limit(whole, 7, seed=1)


def test_digest_sees_text_label_and_order() -> None:
    splits = [
        Split(["a", "b"], [0, 1]),
        Split(["b", "a"], [1, 0]),
        Split(["a", "b"], [1, 1]),
        Split(["a", "c"], [0, 1]),
        Split(["a"], [0]),
    ]
    assert len({data_digest(split) for split in splits}) == len(splits)
    assert data_digest(splits[0]) == data_digest(Split(["a", "b"], [0, 1]))
