"""Values of columns: labels as programs write them, and values that are no texts."""

from __future__ import annotations

import datetime
import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from pidep.errors import TaskError
from pidep.tasks.data import UNLABELLED, TaskData, load_data, load_texts
from pidep.tasks.task import Task, load_task
from tests.conftest import png


def task_file(folder: Path, labels: str, rows: list[dict[str, Any]], more: str = "") -> Path:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = folder / "task.yaml"
    path.write_text(f"name: t\nlabels: {labels}\ndata: {{path: rows.jsonl}}\n{more}")
    return path


def numbers(data: TaskData) -> dict[str, int]:
    return {
        str(row): label
        for split in (data.train, data.test)
        for row, label in zip(split.rows, split.labels, strict=True)
    }


@pytest.mark.parametrize(
    ("labels", "values"),
    [
        ("{0: bad, 1: good}", (0, 1)),
        ("{0: bad, 1: good}", (0.0, 1.0)),
        ("{0: bad, 1: good}", (False, True)),
        ("{0: bad, 1: good}", ("0.0", "1.0")),
        ("{0.0: bad, 1.0: good}", (0, 1)),
        ("{no: bad, yes: good}", ("no", "yes")),
        ("{no: bad, yes: good}", (False, True)),
        ("{false: bad, true: good}", (False, True)),
        ("{False: bad, True: good}", ("False", "True")),
        ("{'false': bad, 'true': good}", ("False", "True")),
        ("{-1: bad, 1: good}", (-1.0, 1.0)),
        ("{null: bad, on: good}", ("null", "on")),
        ("{2020-01-01: bad, 1e3: good}", ("2020-01-01", "1e3")),
        ("{no: bad, yes: good}", (" no ", "yes\n")),
        ("{no: bad, yes: good}", ("No", "YES")),
        ("{NO: bad, Yes: good}", ("no", "yes")),
        ("[no, yes]", ("no", "yes")),
    ],
)
def test_labels_as_programs_write_them(tmp_path: Path, labels: str, values: Any) -> None:
    rows = [{"text": f"row {number}", "label": values[number % 2]} for number in range(20)]
    data = load_data(load_task(task_file(tmp_path, labels, rows)))
    assert numbers(data) == {f"row {number}": number % 2 for number in range(20)}


def test_label_names_that_differ_only_in_their_spelling_stay_apart(tmp_path: Path) -> None:
    rows = [{"text": f"row {number}", "label": ["1", "1.0"][number % 2]} for number in range(20)]
    data = load_data(load_task(task_file(tmp_path, "{'1': one, '1.0': version one}", rows)))
    assert numbers(data) == {f"row {number}": number % 2 for number in range(20)}


MAP = "label_map: {1: bad, 2: bad, 3: null, 4: good, 5: good}\n"


def test_a_label_map_renames_and_drops(tmp_path: Path) -> None:
    rows = [{"text": f"row {number}", "label": number % 5 + 1} for number in range(50)]
    path = task_file(tmp_path, "{bad: awful, good: great}", rows, MAP)
    found = numbers(load_data(load_task(path)))
    expected = {f"row {number}": int(number % 5 > 2) for number in range(50) if number % 5 != 2}
    assert found == expected
    texts = load_texts(load_task(path))
    assert set(texts.test.rows) == set(load_data(load_task(path)).test.rows), "drops in both"
    table = Task.from_rows(rows, label_map={1: "bad", 2: "bad", 3: None, 4: "good", 5: "good"})
    assert (numbers(load_data(table)), list(table.labels)) == (expected, ["bad", "good"])


@pytest.mark.parametrize(
    ("labels", "more", "message"),
    [
        ("{a: x, b: y}", "label_map: {1: c}", r"label_map: '1' becomes 'c', .*\(a, b\)"),
        ("{a: x, b: ' x '}", "", "labels 'a' and 'b' have one text, ' x '"),
        ("{a: x, b: ''}", "", "label 'b' has an empty text"),
        ("{a: x, a: y}", "", "line 2: key 'a' is there twice"),
        ('{a: x, b: "\\ud83d"}', "", "task.yaml"),
        ("{a: x, b: y}", "label: text\nlabel: text", "line 5: key 'label' is there twice"),
    ],
)
def test_labels_that_are_refused(tmp_path: Path, labels: str, more: str, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        load_task(task_file(tmp_path, labels, [], more))


BOMB = "".join(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]\n" for n in range(1, 10))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("labels: " + "[" * 1000, "not readable as YAML"),
        ("l0: &l0 [x]\n" + BOMB, "holds more than 100,000 values"),
        ("labels: &a [*a]", "holds more than 100,000 values"),
        ("max_length: !!int ''", "max_length: .*found ''"),
    ],
)
def test_a_yaml_that_is_deep_or_endless(tmp_path: Path, text: str, message: str) -> None:
    rest = "" if text.startswith("l") else "\nname: t\nlabels: [x, y]\ndata: {path: a.csv}"
    (tmp_path / "task.yaml").write_text(text + rest)
    with pytest.raises(TaskError, match=message):
        load_task(tmp_path / "task.yaml")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"text": b"abc"}, "column 'text': expected a text or a number, found bytes"),
        ({"text": ["a"]}, "column 'text': expected a text or a number, found list"),
        ({"text": {"a": 1}}, "column 'text': expected a text or a number, found dict"),
        ({"text": None}, r"column 'text' is empty \(null\)"),
        ({"text": float("nan")}, r"column 'text' is empty \(null\)"),
        ({"text": "half \ud83d"}, r"column 'text' holds half of a character \(\\ud83d\)"),
        ({"text": "\u200b\ufeff \n"}, "the text is empty"),
        ({"label": b"x"}, "column 'label': expected the name of a label, found bytes"),
        ({"label": ["x"]}, "column 'label': expected the name of a label, found list"),
        ({"label": " "}, "column 'label' is empty"),
        ({"label": float("nan")}, r"column 'label' is empty \(null\)"),
        ({"label": "y "}, r"label 'y' is not in the task's set \(x, yy\) \(did you mean 'yy'\?\)"),
    ],
)
def test_values_that_are_not_text_are_refused_with_row_and_column(given: Any, message: str) -> None:
    rows = [{"text": "a", "label": "x"}, {"text": "b", "label": "yy", **given}]
    with pytest.raises(TaskError, match=f"training rows, row 2: {message}"):
        load_data(Task.from_rows(rows, labels=["x", "yy"]))


def test_the_same_from_pandas_and_datasets_and_parquet(tmp_path: Path) -> None:
    import datasets
    import pandas

    rows = [{"text": [f"a{number}"], "label": ["x", "y"][number % 2]} for number in range(10)]
    forms = [rows, pandas.DataFrame(rows), datasets.Dataset.from_list(rows)]
    for form in forms:
        with pytest.raises(TaskError, match=r"row 1: column 'text': expected .* found list"):
            load_data(Task.from_rows(form))
    table = pandas.DataFrame({"text": [b"a", b"b"], "label": ["x", "y"]})
    table.to_parquet(tmp_path / "a.parquet")
    fields = {"name": "t", "labels": ["x", "y"], "data": {"path": tmp_path / "a.parquet"}}
    with pytest.raises(TaskError, match=r"a\.parquet, row 1: column 'text': expected .* bytes"):
        load_data(Task.model_validate(fields))
    gaps = pandas.DataFrame({"text": ["a", pandas.NA, "c"], "label": [0, 1, None]})
    with pytest.raises(TaskError, match=r"row 2: column 'text' is empty"):
        load_data(Task.from_rows(gaps, labels={0: "bad", 1: "good"}))
    for missing in (pandas.NA, pandas.NaT):
        with pytest.raises(TaskError, match=r"row 1: column 'text' is empty"):
            load_data(Task.from_rows([{"text": missing, "label": "x"}], labels=["x", "y"]))
    twice = pandas.DataFrame([["a", "b", "x"]], columns=["text", "text", "label"])
    with pytest.raises(TaskError, match="column 'text' is there twice"):
        Task.from_rows(twice)


def test_numbers_and_dates_are_texts(tmp_path: Path) -> None:
    rows = [{"text": value, "label": "x"} for value in (1, 2.5, datetime.date(2020, 1, 2), True)]
    test = [{"text": "t", "label": "y"}]
    data = load_data(Task.from_rows(rows, test=test, labels=["x", "y"]))
    assert data.train.rows == ["1", "2.5", "2020-01-02", "True"]


def test_a_template_alone_is_no_text() -> None:
    rows = [{"title": "", "body": "x", "label": "x"}, {"title": " ", "body": "", "label": "y"}]
    with pytest.raises(TaskError, match="row 2: the text is empty"):
        load_data(Task.from_rows(rows, text="{title}: {body}"))


@pytest.mark.parametrize("name", ["Text", " text", "TEXT", "\ufefftext", "texts"])
def test_a_column_that_is_nearly_there(name: str) -> None:
    rows = [{name: "a", "label": "x"}, {name: "b", "label": "y"}]
    with pytest.raises(TaskError) as caught:
        load_data(Task.from_rows(rows))
    assert f"the row has {name!r}, 'label' (did you mean {name!r}?)" in str(caught.value)


def test_the_right_candidate_may_be_named_by_any_number() -> None:
    rows = [
        {"text": f"row {number}", "choices": ["a", "b"], "label": label}
        for number, label in enumerate([1, 1.0, "1.0", "b", " b "])
    ]
    test = [{"text": "t", "choices": ["a", "b"], "label": 0}]
    assert load_data(Task.from_rows(rows, candidates="choices", test=test)).train.labels == [1] * 5
    twice = [{"text": "x", "choices": ["a", "b", "b"], "label": 2}]
    with pytest.raises(TaskError, match="candidates 1 and 2 are both the right text 'b'"):
        load_data(Task.from_rows(twice, candidates="choices", test=test))


def test_train_and_test_that_are_one_file(tmp_path: Path) -> None:
    rows = [{"text": f"row {number}", "label": "xy"[number % 2]} for number in range(20)]
    path = task_file(tmp_path, "[x, y]", rows)
    (tmp_path / "copy.jsonl").write_bytes((tmp_path / "rows.jsonl").read_bytes())
    (tmp_path / "link.jsonl").symlink_to("rows.jsonl")
    for test, message in (
        ("rows.jsonl", "rows.jsonl: holds the training rows and the test rows"),
        ("link.jsonl", "rows.jsonl: holds the training rows and the test rows"),
        ("'[rl]*.jsonl'", "rows.jsonl: holds the training rows and the test rows"),
        ("copy.jsonl", "all 20 training rows are also test rows; give other rows"),
    ):
        files = f"{{files: {{train: rows.jsonl, test: {test}}}}}"
        path.write_text(f"name: t\nlabels: [x, y]\ndata: {files}\n")
        with pytest.raises(TaskError, match=message) as caught:
            load_data(load_task(path))
        assert "test_fraction" not in str(caught.value)


def test_rows_on_both_sides_are_counted_in_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"text": f"row {number}", "label": "xy"[number % 2]} for number in range(10)]
    load_data(Task.from_rows(rows, test=rows[:3]))
    assert "3 of 10 training rows are also test rows" in caplog.text


def test_test_rows_without_labels_may_have_empty_fields_in_a_csv(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\n" + "".join(f"row {n},\n" for n in range(30)))
    fields = {"name": "t", "labels": ["x", "y"], "data": {"path": tmp_path / "a.csv"}}
    data = load_texts(Task.model_validate(fields))
    assert set(data.test.labels) == {UNLABELLED}
    with (tmp_path / "a.csv").open("a") as stream:
        stream.writelines(f"labelled {number},x\n" for number in range(30))
    with pytest.raises(TaskError, match="column 'label' is empty"):
        load_texts(Task.model_validate(fields))


def test_a_folder_of_parquet_and_a_glob_give_the_rows_of_one_file(tmp_path: Path) -> None:
    import pandas

    rows = [{"text": f"row {number}", "label": "xy"[number % 2]} for number in range(40)]
    (tmp_path / "parts").mkdir()
    for part in range(4):
        name = f"train-0000{part}-of-00004.parquet"
        pandas.DataFrame(rows[10 * part : 10 * part + 10]).to_parquet(tmp_path / "parts" / name)
    expected = load_data(Task.from_rows(rows, labels=["x", "y"]))
    for path in ("parts", "parts/train-*.parquet", "par*/*"):
        (tmp_path / "task.yaml").write_text(f"name: t\nlabels: [x, y]\ndata: {{path: {path}}}\n")
        assert load_data(load_task(tmp_path / "task.yaml")) == expected
    (tmp_path / "parts" / "train-00003-of-00004.parquet").write_bytes(b"")
    with pytest.raises(TaskError, match=r"train-00003-of-00004\.parquet: not readable"):
        load_data(load_task(tmp_path / "task.yaml"))


def test_a_folder_of_parquet_with_images(tmp_path: Path) -> None:
    import pandas

    rows = [{"image": png(number), "label": "xy"[number % 2]} for number in range(12)]
    for part in range(2):
        pandas.DataFrame(rows[part::2]).to_parquet(tmp_path / f"{part}.parquet")
    fields = {"name": "t", "input": "", "image": "image", "labels": ["x", "y"]}
    data = load_data(Task.model_validate({**fields, "data": {"path": tmp_path}, "split_seed": 3}))
    assert len(data.train.rows) + len(data.test.rows) == 12


def test_folders_that_name_columns(tmp_path: Path) -> None:
    import pandas

    rows = [{"text": f"row {number}", "label": ["x y", "z"][number % 2]} for number in range(40)]
    pandas.DataFrame(rows).to_parquet(tmp_path / "parts", partition_cols=["label"])
    assert (tmp_path / "parts" / "label=x%20y").is_dir(), (
        "pandas leaves the column out of the files"
    )
    fields = {"name": "t", "labels": ["x y", "z"], "data": {"path": tmp_path / "parts"}}
    expected = load_data(Task.from_rows(rows, labels=["x y", "z"]))
    assert numbers(load_data(Task.model_validate(fields))) == numbers(expected)


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_accents_of_two_forms_are_one_label(tmp_path: Path, form: Any) -> None:
    for number, name in enumerate(("café", "thé") * 8):
        folder = tmp_path / "pets" / unicodedata.normalize(form, name)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.png").write_bytes(png(number))
    fields = {"name": "t", "input": "", "image": "image", "labels": ["café", "thé"]}
    data = load_data(Task.model_validate({**fields, "data": {"path": tmp_path / "pets"}}))
    assert set(data.train.labels) == {0, 1}


def test_anchors_and_merges_of_yaml(tmp_path: Path) -> None:
    (tmp_path / "task.yaml").write_text(
        "name: t\nlabels: &both {no: bad}\nlabel_map: {<<: &gone {5: null}, 4: no, n: yes}\n"
        "data: {path: a.csv}\n".replace("{no: bad}", "{no: bad, yes: good}")
    )
    task = load_task(tmp_path / "task.yaml")
    assert task.labels == {"no": "bad", "yes": "good"}
    assert task.label_map == {"5": None, "4": "no", "n": "yes"}
