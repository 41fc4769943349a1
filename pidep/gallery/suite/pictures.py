"""Pictures of rows as PNG files in the user's cache folder: icons, turned icons, digits."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from pidep.files.atomic_write import write_bytes
from pidep.files.cache_folder import cache_folder
from pidep.gallery.icons.catalog import Icon
from pidep.gallery.icons.digits import Digit
from pidep.gallery.icons.draw import drawn_file
from pidep.inputs.images import load_image

__all__ = ["Picture", "Turned", "picture_file"]


@dataclass(frozen=True)
class Turned:
    """An icon, turned clockwise."""

    icon: Icon
    quarters: int
    """Quarter turns, from 0 (upright) to 3."""


Picture = Icon | Turned | Digit

# pillow turns the other way
_TURNS = {
    1: Image.Transpose.ROTATE_270,
    2: Image.Transpose.ROTATE_180,
    3: Image.Transpose.ROTATE_90,
}


def picture_file(picture: Picture) -> Path:
    """The picture as a file, drawn the first time.

    Raises:
        TaskError: resvg-py is not installed, or an SVG cannot be drawn.
    """
    if isinstance(picture, Icon):
        return drawn_file(picture)
    if isinstance(picture, Turned) and picture.quarters == 0:
        return drawn_file(picture.icon)
    if isinstance(picture, Turned):
        upright = drawn_file(picture.icon)
        key = hashlib.sha256(f"{picture.quarters}\n".encode() + upright.read_bytes()).hexdigest()
    else:
        key = hashlib.sha256(picture.pixels.tobytes()).hexdigest()
    path = cache_folder() / "suite" / "pictures" / key[:2] / f"{key[2:34]}.png"
    if not path.is_file() or path.stat().st_size == 0:
        image = (
            _turned(upright, picture.quarters)
            if isinstance(picture, Turned)
            else Image.fromarray(picture.pixels)
        )
        out = io.BytesIO()
        image.save(out, "PNG")
        write_bytes(path, out.getvalue(), durable=False)
    return path


def _turned(upright: Path, quarters: int) -> Image.Image:
    return load_image(upright).convert("L").transpose(_TURNS[quarters])
