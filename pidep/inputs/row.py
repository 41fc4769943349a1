"""A row of a task: a text, an image, or both, with its own candidates where it has some.
No torch.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pidep.errors import BackboneError
from pidep.inputs.decoding import Decoding
from pidep.inputs.images import ImageSource, load_image, pixels_digest

__all__ = [
    "Input",
    "Row",
    "as_row",
    "image_key",
    "picture_digest",
    "places_of",
    "row_key",
    "size_key",
    "text_of",
    "texts_only",
]


# eq=False: an image may be an array, and comparing arrays gives an array.
@dataclass(frozen=True, eq=False)
class Row:
    """A text, an image, or both."""

    text: str = ""
    image: ImageSource | None = None
    candidates: tuple[Input, ...] = ()
    """The candidates that the answer is chosen from, where every row has its own."""
    where: str = ""
    """The row's place in the data, for messages."""
    columns: Mapping[str, Any] | None = None
    """The row's columns in the place of its text, which the expert's template makes of them."""
    decoding: Decoding | None = None
    """How an encoder-decoder's answer is decoded."""


Input = str | Row
"""A `str` is a row with that text alone."""


def as_row(row: Input) -> Row:
    """The row itself, or a text as a row."""
    return row if isinstance(row, Row) else Row(row)


def text_of(row: Input) -> str:
    """The row's text; empty where it has none."""
    return row if isinstance(row, str) else row.text


def places_of(rows: Sequence[Row]) -> tuple[list[int], list[int]]:
    """Places of the rows with a text, and of those with an image; a row may have both."""
    texts = [at for at, row in enumerate(rows) if row.text.strip()]
    return texts, [at for at, row in enumerate(rows) if row.image is not None]


def size_key(row: Input) -> tuple[bool, int]:
    """Sort key for rows: batches of neighbours have little padding."""
    return (False, len(row)) if isinstance(row, str) else (row.image is not None, len(row.text))


def texts_only(rows: Sequence[Input], *, backbone: str) -> list[str]:
    """The texts of rows without images.

    Raises:
        BackboneError: a row has an image; the message names the row.
    """
    for number, row in enumerate(rows, 1):
        if isinstance(row, Row) and row.image is not None:
            raise BackboneError(
                f"row {number}: has an image, and backbone {backbone!r} reads text only; use "
                "`backbone=pidep-mini`"
            )
    return [text_of(row) for row in rows]


def image_key(image: ImageSource) -> str:
    """Key of an image without decoding it.

    Path, size and time of a file; SHA-256 of other content.
    """
    if isinstance(image, str | Path):
        path = Path(image)
        if not path.is_file():
            return f"file {path}"
        stat = path.stat()
        # Reading thousands of files for a key would cost more than the cache behind it saves.
        return f"file {path} {stat.st_size} {stat.st_mtime_ns}"
    if isinstance(image, bytes | bytearray | memoryview):
        return "bytes " + hashlib.sha256(image).hexdigest()
    if isinstance(image, np.ndarray):
        return (
            f"array {image.shape} {image.dtype} "
            + hashlib.sha256(np.ascontiguousarray(image).tobytes()).hexdigest()
        )
    if isinstance(image, Image.Image):
        return f"image {image.mode} " + pixels_digest(image)
    inner = image.get("bytes") or image.get("path")
    return "nothing" if inner is None else image_key(inner)


def row_key(row: Input) -> tuple[str, str]:
    """Key of a row's encoded content, text and image, without its candidates."""
    if isinstance(row, str):
        return row, ""
    return row.text, "" if row.image is None else image_key(row.image)


def picture_digest(image: ImageSource, *, where: str) -> str:
    """SHA-256 of the decoded picture, independent of its file and place.

    Raises:
        ImageError: it cannot be read; begins with `where`.
    """
    if isinstance(image, str | Path):
        return _file_digest(Path(image), where, image_key(image))
    return pixels_digest(load_image(image, where=where))


@functools.lru_cache(maxsize=100_000)
def _file_digest(path: Path, where: str, _: str) -> str:
    return pixels_digest(load_image(path, where=where))
