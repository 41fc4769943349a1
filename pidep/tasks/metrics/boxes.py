"""The share of boxes that match a reference box."""

from __future__ import annotations

from collections.abc import Sequence

from pidep.errors import TaskError
from pidep.inputs.locations import Box, text_to_box

__all__ = ["acc_at_half", "iou"]


def iou(left: Box, right: Box) -> float:
    """Intersection over union. Pixels and shares of the image give the same value."""
    width = min(left[2], right[2]) - max(left[0], right[0])
    height = min(left[3], right[3]) - max(left[1], right[1])
    if width <= 0 or height <= 0:
        return 0.0
    both = width * height
    return both / (_area(left) + _area(right) - both)


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def acc_at_half(references: Sequence[Sequence[str]], predictions: Sequence[str]) -> float:
    """Acc@0.5 of RefCOCO: the share of texts whose first box has IoU ≥ 0.5 with a reference box.

    A text without a box is wrong. ≥ is used in OFA's and MDETR's evaluation. References are
    location tokens, too, so their edges are exact to 1/1000 of the image.
    """
    return sum(_right(row, text) for row, text in zip(references, predictions, strict=True)) / len(
        predictions
    )


def _right(references: Sequence[str], text: str) -> bool:
    try:
        found = text_to_box(text)
    except TaskError:  # any text of a model that is not a box
        return False
    # An IoU of a half counts as right, whatever rounding does to it.
    return any(
        iou(found, text_to_box(reference, where="reference")) >= 0.5 - 1e-9
        for reference in references
    )
