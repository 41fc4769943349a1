"""A row's answer: the number of its label or candidate, or texts."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from pidep.errors import did_you_mean
from pidep.inputs.cells import filled, is_blank, plain_text, whole_text
from pidep.inputs.images import ImageSource, load_image
from pidep.inputs.locations import box_to_text
from pidep.inputs.places import Place, RowError
from pidep.inputs.row import Input, Row
from pidep.tasks.task import Task
from pidep.tasks.values import known_name, name_of

__all__ = ["label_of", "targets_of"]


def label_of(task: Task, row: dict[str, Any], place: Place) -> int | None:
    """The label number of a row; None for a label that the task's `label_map` drops."""
    value = filled(row, task.label, place)
    if not isinstance(value, str | bool | int | float):
        raise RowError(
            place,
            f"column {task.label!r}: expected the name of a label, found {type(value).__name__} "
            f"({str(value)[:40]!r})",
            "type",
        )
    if isinstance(value, str) and not value.strip():
        raise RowError(
            place, f"column {task.label!r} is empty; fill it or remove the row", "column"
        )
    if task.candidates is not None:
        texts = [] if task.candidates_are == "image" else row[task.candidates]
        return _right_one(texts, value, len(row[task.candidates]), place)
    mapped = known_name(value, task.label_map) if task.label_map else None
    name = known_name(value, task.labels) if mapped is None else task.label_map[mapped]
    if mapped is not None and name is None:
        return None
    if name is None:
        raise RowError(
            place,
            f"label {name_of(value)!r} is not in the task's set ({', '.join(task.labels)})"
            f"{did_you_mean(name_of(value), task.labels)}; add it to labels, or rename or drop it "
            "with label_map",
            "label",
        )
    return list(task.labels).index(name)


def _right_one(texts: list[Any], value: Any, count: int, place: Place) -> int:
    """The number of the right candidate, given as a number or as its text."""
    label, number = name_of(value), known_name(value, [str(one) for one in range(count)])
    if number is not None:
        label = str(texts[int(number)]) if texts else label
    found = [one for one, text in enumerate(texts) if str(text).strip() == label.strip()]
    if len(found) > 1:
        raise RowError(
            place, f"candidates {found[0]} and {found[1]} are both the right text {label[:60]!r}"
        )
    if number is not None:
        return int(number)
    if not found:
        raise RowError(
            place,
            f"label {label[:60]!r}: expected the number of a candidate, 0 to {count - 1}, "
            "or the text of one",
            "label",
        )
    return found[0]


def targets_of(task: Task, row: dict[str, Any], asked: Input, place: Place) -> tuple[str, ...]:
    """The texts that answer a row."""
    for column in task.target_columns:
        filled(row, column, place)
    if task.target_is == "box":
        return (_box(task, row[task.target_columns[0]], asked, place),)
    lists = [column for column in task.target_columns if isinstance(row[column], list)]
    if len(lists) > 1:
        raise RowError(
            place,
            f"the target template {task.target!r} names several lists, "
            f"{' and '.join(lists)}; expected one at most",
        )
    versions = [{**row, lists[0]: value} for value in row[lists[0]]] if lists else [row]
    for version in versions:
        for column in task.target_columns:
            # A dict is allowed: {answers[text]} takes a key of it.
            if not isinstance(version[column], dict):
                plain_text(version, column, place)
    assert task.target is not None
    try:
        texts = tuple(task.target.format(**version).strip() for version in versions)
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise RowError(
            place,
            f"the target template {task.target!r} does not fit it ({error}); use "
            f"{{column}} or {{column[key]}}",
        ) from error
    if not texts or any(map(is_blank, texts)):
        raise RowError(place, "the target is empty; remove the row", "empty")
    return tuple(whole_text(text, "the target", place) for text in texts)


def _box(task: Task, box: Any, asked: Input, place: Place) -> str:
    """Location tokens of a box in pixels."""
    assert isinstance(asked, Row)
    assert asked.image is not None
    if (
        not isinstance(box, list)
        or len(box) != 4
        or not all(isinstance(number, int | float) for number in box)
    ):
        raise RowError(
            place, f"box: expected four numbers, {task.box_format}, found {str(box)[:60]!r}", "type"
        )
    # COCO's and RefCOCO's annotations have left, top, width, height; everything below has corners.
    if task.box_format == "xywh":
        box = [box[0], box[1], box[0] + box[2], box[1] + box[3]]
    return box_to_text(box, size=_size(asked.image, str(place)), where=f"{place}: box")


def _size(image: ImageSource, place: str) -> tuple[int, int]:
    return _size_of_file(image) if isinstance(image, Path) else load_image(image, where=place).size


@functools.lru_cache(maxsize=100_000)  # Cached: several rows ask about one image.
def _size_of_file(path: Path) -> tuple[int, int]:
    return load_image(path).size
