"""A row's input: its text, its image and its candidates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from pidep.inputs.images import ImageSource, check_source
from pidep.inputs.row import Input, Row
from pidep.tasks.places import Place, RowError
from pidep.tasks.task import Task
from pidep.tasks.values import filled, is_blank, whole_text

__all__ = ["input_of"]


def input_of(task: Task, row: Any, place: Place) -> Input:
    """A row's input; a text alone is a `str`.

    Raises:
        RowError, ImageError: a column is missing or holds what no text or image can be made of.
    """
    text = _text(task, row, place)
    if task.image is None and task.candidates is None:
        return text
    image = None if task.image is None else _image(row, task.image, str(place))
    candidates = () if task.candidates is None else _candidates(task, row, place)
    return Row(text, image, candidates, str(place))


def _text(task: Task, row: Any, place: Place) -> str:
    """The text of a row; empty only where there is an image."""
    if not isinstance(row, dict):
        raise RowError(place, f"expected an object with columns, found {type(row).__name__}")
    return task.template.render(row, place)


def _image(row: dict[str, Any], column: str, place: str) -> ImageSource:
    image = filled(row, column, place)
    if not isinstance(image, str | Path | bytes | dict | Image.Image):
        raise RowError(
            place,
            f"column {column!r}: expected a path, bytes or {{bytes, path}}, found "
            f"{type(image).__name__}",
            "type",
        )
    check_source(image, where=f"{place}: {column}")
    return image


def _candidates(task: Task, row: dict[str, Any], place: Place) -> tuple[Input, ...]:
    assert task.candidates is not None
    values = filled(row, task.candidates, place)
    if not isinstance(values, list) or len(values) < 2:
        raise RowError(
            place,
            f"column {task.candidates!r}: expected a list of at least 2 candidates, found "
            f"{str(values)[:60]!r}",
            "type",
        )
    if task.candidates_are == "image":
        numbered = [(f"{place}, candidate {number}", value) for number, value in enumerate(values)]
        return tuple(
            Row(image=_image({"image": value}, "image", where), where=where)
            for where, value in numbered
        )
    for number, value in enumerate(values):
        if not isinstance(value, str) or is_blank(value):
            raise RowError(
                place, f"candidate {number}: expected a text, found {str(value)[:60]!r}", "type"
            )
        whole_text(value, f"candidate {number}", place)
    return tuple(value.strip() for value in values)
