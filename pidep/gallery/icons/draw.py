"""SVG to pixels, drawn on demand and cached."""

from __future__ import annotations

import hashlib
import io
from functools import cache
from importlib.metadata import version
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from pidep.errors import TaskError
from pidep.files.atomic_write import write_bytes
from pidep.files.cache_folder import cache_folder
from pidep.gallery.icons.catalog import Icon
from pidep.inputs.images import load_image

__all__ = ["draw", "drawn_file", "render"]

_FORM = 1  # version of the drawing; part of the cache's path


def render(icon: Icon, *, size: int = 128) -> bytes:
    """A PNG of the icon, black on white, centred on a `size` × `size` square.

    The margin is a sixteenth of the side.

    Raises:
        TaskError: resvg-py is not installed, or the SVG cannot be drawn.
    """
    try:
        import resvg_py
    except ImportError as error:
        raise TaskError(
            f"icons: they are drawn with resvg-py, which does not load ({error}); pip install "
            "'pidep[vision]'"
        ) from error
    if size < 16:
        raise TaskError(f"icons: size {size}: expected at least 16 pixels")
    inner = size - 2 * (size // 16)
    try:
        svg = icon.path.read_text(encoding="utf-8")
        raw = bytes(
            resvg_py.svg_to_bytes(
                svg_string=svg, height=inner, background="#ffffff", skip_system_fonts=True
            )
        )
    except (OSError, ValueError) as error:
        raise TaskError(
            f"{icon.path}: cannot be drawn ({' '.join(str(error).split())}); reinstall its package"
        ) from error
    return _centred(raw, icon, size=size, inner=inner)


def _centred(raw: bytes, icon: Icon, *, size: int, inner: int) -> bytes:
    """The image centred on the square; an image wider than high is scaled down first."""
    image = load_image(raw, where=icon.key).convert("L")
    if image.width > inner:
        image = image.resize(
            (inner, max(1, round(image.height * inner / image.width))), Image.Resampling.BICUBIC
        )
    square = Image.new("L", (size, size), 255)
    square.paste(image, ((size - image.width) // 2, (size - image.height) // 2))
    out = io.BytesIO()
    square.save(out, "PNG")
    return out.getvalue()


@cache
def _renderer() -> str:
    """The version of resvg-py, cached: reading metadata takes as long as reading a drawn icon."""
    return version("resvg-py")


def drawn_file(icon: Icon, *, size: int = 128) -> Path:
    """The icon as a PNG file in the user's cache folder; rendered the first time.

    Raises:
        TaskError: resvg-py is not installed, or the SVG cannot be drawn.
    """
    key = hashlib.sha256(
        f"{_FORM} {_renderer()} {size}\n".encode() + icon.path.read_bytes()
    ).hexdigest()
    path = cache_folder() / "icons" / str(size) / key[:2] / f"{key[2:34]}.png"
    if not path.is_file() or path.stat().st_size == 0:
        # Not flushed: there are thousands of files, and each can be drawn again.
        write_bytes(path, render(icon, size=size), durable=False)
    return path


def draw(icon: Icon, *, size: int = 128) -> npt.NDArray[np.uint8]:  # [size, size, 3]
    """The icon's pixels, black on white, cached after the first time.

    Raises:
        TaskError: resvg-py is not installed, or the SVG cannot be drawn.
    """
    return np.asarray(load_image(drawn_file(icon, size=size), where=icon.key))
