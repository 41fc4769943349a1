"""Images of a batch to pixels, each once, with the preprocessing that training had."""

from __future__ import annotations

from collections.abc import Container, Sequence
from pathlib import Path

from pidep.errors import ImageError, PidepError, ServingError
from pidep.inputs.images import Preprocess
from pidep.inputs.row import Input, as_row, image_key
from pidep.runtime.answer import Array
from pidep.runtime.isolate import as_row_error

__all__ = ["read_pixels", "require_same_preprocess"]


def read_pixels(
    rows: Sequence[Input], preprocess: Preprocess, *, known: Container[str] = ()
) -> tuple[list[str], dict[str, Array], dict[int, PidepError]]:
    """Each row's image key, the pixels of each key, and the errors by row number.

    An image that several rows ask about is decoded once. The key of a row without an image is
    empty.

    Args:
        known: keys whose pixels nobody needs.

    Returns:
        Keys, key to pixels `[3, S, S]` fp32, and row number to error.
    """
    asked = [as_row(row) for row in rows]
    keys = ["" if row.image is None else image_key(row.image) for row in asked]
    pixels: dict[str, Array] = {}
    wrong: dict[int, PidepError] = {}
    for at, (key, row) in enumerate(zip(keys, asked, strict=True)):
        if row.image is not None and key not in known and key not in pixels:
            try:
                pixels[key] = preprocess.one(row.image, where=row.where or f"row {at + 1}")
            except ImageError as error:
                wrong[at] = as_row_error(error)
    return keys, pixels, wrong


def require_same_preprocess(preprocess: Preprocess, expected: str, *, where: Path) -> None:
    """Refuse an entry whose images would be prepared otherwise than in training.

    Args:
        expected: the digest that training had.

    Raises:
        ServingError: begins with `where`.
    """
    # The digest covers the algorithm, too: a release that resizes otherwise refuses old graphs.
    if preprocess.digest != expected:
        raise ServingError(
            f"{where}: image preprocessing differs from training ({expected[:19]}…); export the "
            "model again"
        )
