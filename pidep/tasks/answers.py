"""A row's answer: the number of its label or candidate, or texts."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from pidep.errors import TaskError
from pidep.inputs.images import ImageSource, load_image
from pidep.inputs.locations import box_to_text
from pidep.inputs.row import Input, Row
from pidep.tasks.task import Task

__all__ = ["check_column", "label_of", "targets_of"]


def check_column(row: dict[str, Any], column: str, place: str) -> None:
    """Refuse a row whose column is missing or empty."""
    if row.get(column) is None:
        raise TaskError(f"{place}: no column {column!r}; the row has {', '.join(map(str, row))}")


def label_of(task: Task, row: dict[str, Any], place: str) -> int:
    """The label number of a row."""
    check_column(row, task.label, place)
    label = str(row[task.label])
    if task.candidates is not None:
        return _right_one(
            [] if task.candidates_are == "image" else row[task.candidates],
            label,
            len(row[task.candidates]),
            place,
        )
    if label not in task.labels:
        raise TaskError(
            f"{place}: label {label!r} is not in the task's set ({', '.join(task.labels)})"
        )
    return list(task.labels).index(label)


def _right_one(texts: list[Any], label: str, count: int, place: str) -> int:
    if label.isdecimal() and int(label) < count:
        return int(label)
    found = [number for number, value in enumerate(texts) if str(value) == label]
    if len(found) != 1:
        raise TaskError(
            f"{place}: label {label[:60]!r}: expected the number of a candidate, 0 to {count - 1}, "
            "or the text of one"
        )
    return found[0]


def targets_of(task: Task, row: dict[str, Any], asked: Input, place: str) -> tuple[str, ...]:
    """The texts that answer a row."""
    for column in task.target_columns:
        check_column(row, column, place)
    if task.target_is == "box":
        return (_box(task, row[task.target_columns[0]], asked, place),)
    lists = [column for column in task.target_columns if isinstance(row[column], list)]
    if len(lists) > 1:
        raise TaskError(
            f"{place}: the target template {task.target!r} names several lists, "
            f"{' and '.join(lists)}; expected one at most"
        )
    versions = [{**row, lists[0]: value} for value in row[lists[0]]] if lists else [row]
    assert task.target is not None
    try:
        texts = tuple(task.target.format(**version).strip() for version in versions)
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise TaskError(
            f"{place}: the target template {task.target!r} does not fit it ({error}); use "
            f"{{column}} or {{column[key]}}"
        ) from error
    if not texts or not all(texts):
        raise TaskError(f"{place}: the target is empty; remove the row")
    return texts


def _box(task: Task, box: Any, asked: Input, place: str) -> str:
    """Location tokens of a box in pixels."""
    assert isinstance(asked, Row)
    assert asked.image is not None
    if (
        not isinstance(box, list)
        or len(box) != 4
        or not all(isinstance(number, int | float) for number in box)
    ):
        raise TaskError(
            f"{place}: box: expected four numbers, {task.box_format}, found {str(box)[:60]!r}"
        )
    # COCO's and RefCOCO's annotations have left, top, width, height; everything below has corners.
    if task.box_format == "xywh":
        box = [box[0], box[1], box[0] + box[2], box[1] + box[3]]
    return box_to_text(box, size=_size(asked.image, place), where=f"{place}: box")


def _size(image: ImageSource, place: str) -> tuple[int, int]:
    return _size_of_file(image) if isinstance(image, Path) else load_image(image, where=place).size


@functools.lru_cache(maxsize=100_000)  # Cached: several rows ask about one image.
def _size_of_file(path: Path) -> tuple[int, int]:
    return load_image(path).size
