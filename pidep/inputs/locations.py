"""Boxes as words: Florence-2's location tokens `<loc_0>` … `<loc_999>`, 1000 to each side.

A box is `(left, top, right, bottom)`, in pixels with the image's `size`, or in [0, 1] without. Bins
are those of transformers' `Florence2PostProcessor.quantize` and `dequantize`: down to the bin
below, and back to the bin's middle. No torch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np

from pidep.errors import TaskError

__all__ = ["BINS", "Box", "Size", "box_to_text", "text_to_box", "text_to_boxes"]

BINS = 1000
Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""
Size = tuple[float, float]
"""Width and height of the box's image; (1, 1) for boxes in [0, 1]."""
_UNIT: Size = (1.0, 1.0)
# Annotations are off by a pixel. A box in pixels without its size is off by far more.
_SLACK = 0.01
# some tokenizers put spaces between tokens
_FOUR = re.compile(r"<loc_(\d+)>\s*<loc_(\d+)>\s*<loc_(\d+)>\s*<loc_(\d+)>")
_LOCATION = re.compile(r"<loc_(\d+)>")
_LABELLED = re.compile(r"([^<]*)((?:<loc_\d+>\s*)+)")


def box_to_text(box: Sequence[float], *, size: Size = _UNIT, where: str = "box") -> str:
    """Four location tokens.

    Raises:
        TaskError: it is no box, or lies outside the image; begins with `where`.

    >>> box_to_text((0.1, 0.25, 0.5, 1.0))
    '<loc_100><loc_250><loc_500><loc_999>'
    >>> box_to_text((64, 120, 320, 480), size=(640, 480))
    '<loc_100><loc_250><loc_500><loc_999>'
    """
    left, top, right, bottom = _checked(box, size, where)
    places = zip((left, top, right, bottom), (*size, *size), strict=True)
    return "".join(f"<loc_{_bin(place, side)}>" for place, side in places)


def text_to_box(text: str, *, size: Size = _UNIT, where: str = "answer") -> Box:
    """The first box in a text, at the middle of its bins.

    Raises:
        TaskError: there is none, or a location is no bin; begins with `where`.

    >>> text_to_box("the car<loc_100><loc_250><loc_500><loc_999>")
    (0.1005, 0.2505, 0.5005, 0.9995)
    """
    found = _FOUR.search(text)
    if found is None:
        raise TaskError(
            f"{where}: expected four locations such as <loc_0><loc_0><loc_999><loc_999>, found "
            f"{_short(text)}"
        )
    return _box(found.groups(), size, where)


def text_to_boxes(text: str, *, size: Size = _UNIT, where: str = "answer") -> list[tuple[str, Box]]:
    """Every box with the label before it. A label may have several boxes; there may be none.

    Raises:
        TaskError: locations that are no box, or no bin; begins with `where`.
    """
    boxes = []
    for label, run in _LABELLED.findall(text):
        places = _LOCATION.findall(run)
        if len(places) % 4:
            raise TaskError(
                f"{where}: expected four locations a box, found {len(places)} in a row: "
                f"{_short(label + run)}"
            )
        boxes += [
            (label.strip(), _box(places[at : at + 4], size, where))
            for at in range(0, len(places), 4)
        ]
    return boxes


def _checked(box: Sequence[float], size: Size, where: str) -> Box:
    if not all(side > 0 and math.isfinite(side) for side in size):
        raise TaskError(f"{where}: image size {size[0]:g} × {size[1]:g}: expected numbers above 0")
    try:
        left, top, right, bottom = (float(place) for place in box)
    except (TypeError, ValueError) as error:
        raise TaskError(
            f"{where}: expected (left, top, right, bottom), found {_short(box)}"
        ) from error
    if (
        not all(math.isfinite(place) for place in (left, top, right, bottom))
        or right < left
        or bottom < top
    ):
        raise TaskError(
            f"{where}: expected left ≤ right and top ≤ bottom, found {_short(box)}; boxes are not "
            "(x, y, width, height)"
        )
    width, height = size
    if (
        min(left / width, top / height) < -_SLACK
        or max(right / width, bottom / height) > 1 + _SLACK
    ):
        hint = (
            "give the image's size with a box in pixels"
            if size == _UNIT
            else "it belongs to another image"
        )
        raise TaskError(
            f"{where}: box {_short(box)} lies outside its image of {width:g} × {height:g}; {hint}"
        )
    return left, top, right, bottom


def _bin(place: float, side: float) -> int:
    # In fp32, as transformers divides pixels, so that a box on a bin's edge falls on the same side:
    # 0.5 of such an edge is bin 499 in fp32 and 500 in fp64.
    bins = (
        np.float32(place) * np.float32(BINS)
        if side == 1.0
        else np.float32(place) / np.float32(side / BINS)
    )
    return int(np.clip(np.floor(bins), 0, BINS - 1))


def _box(places: Sequence[str], size: Size, where: str) -> Box:
    bins = [int(place) for place in places]
    if max(bins) >= BINS:
        raise TaskError(
            f"{where}: expected locations from 0 to {BINS - 1}, found <loc_{max(bins)}>"
        )
    left, top, right, bottom = (
        (place + 0.5) * side / BINS for place, side in zip(bins, (*size, *size), strict=True)
    )
    return left, top, right, bottom


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"
