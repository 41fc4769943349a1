"""A row's columns as text: what a template may be, and which rows are refused."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import pytest

from pidep.errors import TaskError
from pidep.inputs.template import Template, columns_of, fill, read_columns
from pidep.tasks.task import Task, load_task

MAIL = Template("{subject}: {body}")


def test_values_take_the_places_of_their_columns() -> None:
    row = {"subject": "  Re {body}", "body": 7, "other": b"not read"}
    assert MAIL.render(row, "row 1") == "Re {body}: 7"
    assert (
        Template("{{{Price ($)}}} on {day}").render(
            {"Price ($)": 1.5, "day": date(2026, 1, 2)}, "row 1"
        )
        == "{1.5} on 2026-01-02"
    )
    assert columns_of("{a} {b} {a}") == ("a", "b")


@pytest.mark.parametrize(
    "template",
    [
        "{a.__class__}",
        "{a.__init__.__globals__}",
        "{a[0]}",
        "{a!r}",
        "{a:>99999999}",
        "{a:{b}}",
        "{}",
        "{ }",
        "{a",
        "a}",
    ],
)
def test_only_plain_names_are_a_template(template: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected plain \{column\}|[Ss]ingle|expected '}'"):
        Template(template)
    path = tmp_path / "t.yaml"
    labels = "labels: {a: one, b: two}\ndata: {path: rows.jsonl}\n"
    path.write_text(f"name: t\ninput: {template!r}\n{labels}")
    with pytest.raises(TaskError, match=r"t\.yaml: input: "):
        load_task(path)


@pytest.mark.parametrize("template", ["{label:>99999999}", "{label!r}", "{label.upper}"])
def test_label_texts_and_targets_have_plain_names_too(template: str) -> None:
    fields: dict[str, Any] = {"name": "t", "data": {"path": "rows.jsonl"}}
    for key in ("label_text", "target"):
        with pytest.raises(ValueError, match="plain"):
            Task.model_validate({**fields, key: template})


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"body": "x"}, "row 3: no column 'subject'; the row has 'body'"),
        ({"subject": "x", "Body": "y"}, r"no column 'body'; .* \(did you mean 'Body'\?\)"),
        ({"subject": "x", "body": None}, r"row 3: column 'body' is empty \(null\)"),
        ({"subject": "x", "body": float("nan")}, r"row 3: column 'body' is empty \(null\)"),
        ({"subject": "x", "body": b"y"}, "column 'body': expected a text or a number, found bytes"),
        ({"subject": ["x"], "body": "y"}, r"column 'subject': expected .* found list"),
        ({"subject": "\ud800", "body": "y"}, "column 'subject' holds half of a character"),
        ({"subject": 10**5000, "body": "y"}, "row 3: a number in it is too long"),
        ({"subject": " ", "body": "\n\u200b"}, "row 3: the text is empty"),
    ],
)
def test_a_row_that_makes_no_text_is_refused(row: dict[str, Any], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        MAIL.render(row, "row 3")


def test_a_request_names_the_templates_columns_and_no_others() -> None:
    assert MAIL.asked({"body": "b", "subject": "s"}, "row 1") == "s: b"
    with pytest.raises(TaskError, match=r"row 1: unknown column 'subjct' \(did you mean 'subject'"):
        MAIL.asked({"subjct": "s", "body": "b"}, "row 1")
    photo = Template("", image="photo")
    assert photo.asked({}, "row 1") == ""
    with pytest.raises(TaskError, match="row 1: unknown column 'photo'; send it as an image"):
        photo.asked({"photo": "x"}, "row 1")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"[" * 100_000, "row 2: columns: expected a JSON object"),
        (b"1" * 5001, "row 2: columns: expected a JSON object"),
        (b"\xff{}", "row 2: columns: expected a JSON object"),
        (b"[]", "row 2: columns: expected a JSON object, found list"),
        (b'{"a": 1, "a": 2}', "row 2: column 'a' is there twice"),
    ],
)
def test_columns_that_are_no_object_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(TaskError, match=message) as caught:
        read_columns(data, "row 2")
    assert len(str(caught.value)) < 200


def test_a_request_makes_no_text_of_any_length() -> None:
    often = Template("{a}" * 40_000)
    assert often.asked({"a": "x"}, "row 1") == "x" * 40_000
    with pytest.raises(TaskError, match="row 1: its text would have more than 1048576 characters"):
        often.asked({"a": "x" * 65_000}, "row 1")


def test_its_json_is_the_template() -> None:
    for template in (MAIL, Template("", "photo"), Template("{a}", None, "choices", "image")):
        assert Template.of(template.to_json()) == template
    assert MAIL.to_json() == {"text": "{subject}: {body}"}
    for wrong in (
        "x",
        {},
        {"text": "{a.b}"},
        {"text": "{a}", "images": "x"},
        {"text": "{a}", "image": 3},
        {"text": "{a}", "candidates_are": "sound"},
    ):
        with pytest.raises(ValueError, match=r"expected|key|plain"):
            Template.of(wrong)


def test_filling_reads_nothing_in_the_values() -> None:
    assert fill("{a}{{b}}", {"a": "{b}"}) == "{b}{b}"


@pytest.mark.parametrize("labels", [{"a": " ", "b": "two"}, {" ": "one", "b": "two"}])
def test_a_label_without_a_word_is_refused(labels: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="has an empty"):
        Task.model_validate({"name": "t", "labels": labels, "data": {"path": "rows.jsonl"}})
