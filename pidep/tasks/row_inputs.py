"""A row's input: its text, its image and its candidates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from pidep.inputs.cells import filled, is_blank, whole_text
from pidep.inputs.images import ImageSource, check_source
from pidep.inputs.places import Place, RowError
from pidep.inputs.row import Input, Row
from pidep.inputs.template import Template

__all__ = ["input_of"]


def input_of(template: Template, row: Any, place: Place | str) -> Input:
    """A row's input; a text alone is a `str`.

    Raises:
        RowError, ImageError: a column is missing or holds what no text or image can be made of.
    """
    text = _text(template, row, place)
    if template.image is None and template.candidates is None:
        return text
    image = None if template.image is None else _image(row, template.image, str(place))
    candidates = () if template.candidates is None else _candidates(template, row, place)
    return Row(text, image, candidates, str(place))


def _text(template: Template, row: Any, place: Place | str) -> str:
    """The text of a row; empty only where there is an image."""
    if not isinstance(row, dict):
        raise RowError(place, f"expected an object with columns, found {type(row).__name__}")
    return template.render(row, place)


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


def _candidates(template: Template, row: dict[str, Any], place: Place | str) -> tuple[Input, ...]:
    assert template.candidates is not None
    values = filled(row, template.candidates, place)
    if not isinstance(values, list) or len(values) < 2:
        raise RowError(
            place,
            f"column {template.candidates!r}: expected a list of at least 2 candidates, found "
            f"{str(values)[:60]!r}",
            "type",
        )
    if template.candidates_are == "image":
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
