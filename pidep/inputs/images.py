"""Images to pixels. Training, export and the served model decode, resize and normalise only here.

pillow and numpy suffice, so that the code runs inside Triton Server.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from pidep.errors import ImageError
from pidep.inputs.image_cost import MAX_SCANS, count_scans, tile_size

__all__ = [
    "FORMATS",
    "MAX_PIXELS",
    "ImageSource",
    "Preprocess",
    "check_source",
    "encoded_pixels",
    "load_image",
    "pixels_digest",
]

ImageSource = (
    str | Path | bytes | bytearray | memoryview | Image.Image | npt.NDArray[Any] | Mapping[str, Any]
)
"""A path, an encoded file, an open image, an array `[H, W]` or `[H, W, 1|3|4]`, or Hugging Face's
`{"bytes": …, "path": …}`.
"""

Float = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""Formats that are decoded. Others are refused: EPS runs a program, PSD and FITS are rarely meant.
"""
# A PNG of some kilobytes can hold gigapixels, and decoding allocates them all.
MAX_PIXELS = 64 * 2**20
"""Most pixels of an image. The header's width times height is checked before decoding."""
_ALGORITHM = 1  # part of the digest; raise it when the same parameters give other pixels
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_KINDS: dict[str, tuple[type, ...]] = {"bytes": (bytes, bytearray, memoryview), "path": (str, Path)}
_DEEP = ("I", "I;16", "I;16L", "I;16B", "I;16N")


def load_image(
    source: ImageSource, *, where: str = "image", max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """An upright 8-bit RGB image of the first frame.

    Orientation is applied, alpha is laid over white, and deeper or other modes are converted.

    Raises:
        ImageError: nothing is there, it is damaged, too large, or of a kind that is not read;
            the message begins with `where`.

    >>> load_image(np.zeros((2, 3), np.uint8)).size
    (3, 2)
    """
    if isinstance(source, Mapping):
        source = _of_mapping(source, where)
    if isinstance(source, np.ndarray):
        _check_size(source.shape[1::-1] if source.ndim > 1 else source.shape, where, max_pixels)
        return Image.fromarray(_array_to_rgb(source, where))
    if isinstance(source, Image.Image):
        _check_size(source.size, where, max_pixels)
        return _decoded(source, where)
    if isinstance(source, str | Path):
        where = f"{where} {str(source)!r}"
        return _opened(_existing(Path(source), where), where, max_pixels)
    if isinstance(source, bytes | bytearray | memoryview):
        if len(source) == 0:
            raise ImageError(
                f"{where}: expected an encoded image, found 0 bytes; remove the row or give its "
                "file again"
            )
        return _opened(io.BytesIO(source), where, max_pixels)
    raise ImageError(
        f"{where}: expected a path, bytes, an image or an array, found {type(source).__name__}"
    )


def check_source(source: ImageSource, *, where: str = "image") -> None:
    """Check that there is something to decode, without decoding it.

    Raises:
        ImageError: no such file, or nothing in it; begins with `where`.
    """
    if isinstance(source, Mapping):
        source = _of_mapping(source, where)
    if isinstance(source, str | Path):
        _existing(Path(source), f"{where} {str(source)!r}")
    elif isinstance(source, bytes | bytearray | memoryview) and len(source) == 0:
        raise ImageError(
            f"{where}: expected an encoded image, found 0 bytes; remove the row or give its file "
            "again"
        )


def _of_mapping(source: Mapping[str, Any], where: str) -> ImageSource:
    """The bytes or the path of Hugging Face's pair; bytes come first, as in `datasets`."""
    for key, kinds in _KINDS.items():
        value: Any = source.get(key)
        if value is not None:
            if not isinstance(value, kinds):
                raise ImageError(
                    f"{where}: {key} is a {type(value).__name__}; expected {{'bytes': bytes, "
                    f"'path': str}}"
                )
            return cast("bytes | str", value)
    raise ImageError(
        f"{where}: expected bytes or a path, found neither (columns "
        f"{', '.join(map(str, source)) or 'none'})"
    )


def _existing(path: Path, where: str) -> Path:
    if not path.is_file():
        what = "a folder" if path.is_dir() else "nothing"
        raise ImageError(f"{where}: expected an image file, found {what}; check the path")
    if path.stat().st_size == 0:
        raise ImageError(
            f"{where}: expected an encoded image, found 0 bytes; remove the row or give its file "
            "again"
        )
    return path


def _opened(file: Path | io.BytesIO, where: str, max_pixels: int) -> Image.Image:
    with _header(file, where, max_pixels) as image:
        return _decoded(image, where)


def encoded_pixels(encoded: bytes, *, where: str = "image") -> int:
    """Pixels that decoding an image costs, from its header: nothing is decoded.

    Raises:
        ImageError: the header cannot be read, or it announces more than `MAX_PIXELS`.
    """
    with _header(io.BytesIO(encoded), where, MAX_PIXELS) as image:
        # A whole tile is decoded, even where the image is a corner of it.
        return max(image.width * image.height, math.prod(tile_size(image)))


@contextmanager
def _header(file: Path | io.BytesIO, where: str, max_pixels: int) -> Iterator[Image.Image]:
    """An image whose header is read and whose cost is within bounds. It is not decoded yet."""
    try:
        # pillow reads pixels only on `load`.
        with Image.open(file, formats=FORMATS) as image:
            _check_size(image.size, where, max_pixels)
            _check_cost(image, file, where, max_pixels)
            yield image
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(
            f"{where}: expected at most {max_pixels} pixels, found more ({_line(error)}); scale it "
            "down"
        ) from error
    except UnidentifiedImageError as error:
        raise ImageError(
            f"{where}: expected {', '.join(FORMATS)}, found something else; convert it or remove "
            "the row"
        ) from error
    except Exception as error:  # A damaged file makes decoders raise almost anything.
        raise ImageError(
            f"{where}: the header cannot be read ({_line(error)}); it is damaged, give its file "
            "again"
        ) from error


def _check_cost(image: Image.Image, file: Path | io.BytesIO, where: str, max_pixels: int) -> None:
    """Refuse an image that costs more than its pixels tell."""
    _check_size(tile_size(image), where, max_pixels)
    # A JPEG that has further pictures behind the first one is an MPO.
    if image.format in ("JPEG", "MPO"):
        scans = count_scans(file.read_bytes() if isinstance(file, Path) else file.getbuffer())
        if scans > MAX_SCANS:
            raise ImageError(
                f"{where}: expected at most {MAX_SCANS} scans in a JPEG, found more; save it again"
            )


def _check_size(size: Sequence[int], where: str, max_pixels: int) -> None:
    pixels = int(np.prod([int(side) for side in size], dtype=np.int64))
    if pixels <= 0:
        raise ImageError(
            f"{where}: expected at least one pixel, found {' x '.join(map(str, size))}; remove the "
            "row"
        )
    if pixels > max_pixels:
        found = " x ".join(map(str, size))
        raise ImageError(
            f"{where}: expected at most {max_pixels} pixels, found {found} = {pixels}; scale it "
            "down"
        )


def _decoded(image: Image.Image, where: str) -> Image.Image:
    mode = image.mode
    try:
        image.load()
    except Exception as error:  # As above: truncated data, wrong checksums, impossible tables.
        raise ImageError(
            f"{where}: the pixels cannot be decoded ({_line(error)}); it is damaged, give its file "
            "again"
        ) from error
    try:
        return _upright(_to_rgb(image, where), image)
    except ValueError as error:
        raise ImageError(
            f"{where}: mode {mode} cannot be converted ({_line(error)}); save it as RGB"
        ) from error


def _to_rgb(image: Image.Image, where: str) -> Image.Image:
    if image.mode in _DEEP or image.mode == "F":
        values = np.asarray(image)
        return Image.fromarray(
            _array_to_rgb(values if image.mode == "F" else _sixteen(values, where), where)
        )
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        with_alpha = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        white.alpha_composite(with_alpha)
        return white.convert("RGB")
    return image.convert("RGB")


def _upright(rgb: Image.Image, original: Image.Image) -> Image.Image:
    """The image turned as EXIF says. A damaged EXIF block is ignored."""
    try:
        turn = _TURNS.get(original.getexif().get(_ORIENTATION, 1))
    except Exception:  # A damaged block raises as much as a damaged image.
        return rgb
    return rgb if turn is None else rgb.transpose(turn)


def _sixteen(values: npt.NDArray[Any], where: str) -> npt.NDArray[np.uint16]:
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise ImageError(
            f"{where}: expected 16 bits a pixel, found values {low} to {high}; save it with 8 or "
            "16 bits"
        )
    return values.astype(np.uint16)


def _array_to_rgb(values: npt.NDArray[Any], where: str) -> Bytes:
    """An array `[H, W]` or `[H, W, 1|3|4]` as `[H, W, 3]` uint8.

    Accepts bool, uint8, uint16, and floats in [0, 1].
    """
    if values.ndim == 2:
        values = values[..., None]
    if values.ndim != 3 or values.shape[2] not in (1, 3, 4):
        raise ImageError(
            f"{where}: expected [H, W] or [H, W, 1|3|4], found {list(values.shape)}; channels come "
            "last"
        )
    eight = _eight_bits(values, where)
    if eight.shape[2] == 4:
        white = Image.new("RGBA", (eight.shape[1], eight.shape[0]), (255, 255, 255, 255))
        white.alpha_composite(Image.fromarray(np.ascontiguousarray(eight)))
        return np.array(white.convert("RGB"), dtype=np.uint8)
    return np.ascontiguousarray(np.broadcast_to(eight, (*eight.shape[:2], 3)))


def _eight_bits(values: npt.NDArray[Any], where: str) -> Bytes:
    if values.dtype == np.bool_:
        return np.asarray(np.where(values, 255, 0), dtype=np.uint8)
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.uint16:
        # 65535 = 257 · 255, so this rounds to the nearest of 256 levels. A shift by 8 would round
        # down.
        return np.asarray((values.astype(np.uint32) + 128) // 257, dtype=np.uint8)
    if np.issubdtype(values.dtype, np.floating):
        low, high = float(values.min()), float(values.max())
        if not (low >= 0.0 and high <= 1.0):  # NaN fails as well
            raise ImageError(
                f"{where}: expected floats from 0 to 1, found {low:g} to {high:g}; scale them"
            )
        return np.asarray(np.rint(values.astype(np.float64) * 255.0), dtype=np.uint8)
    raise ImageError(
        f"{where}: expected bool, uint8, uint16 or floats, found {values.dtype}; convert it to "
        "uint8"
    )


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__


def pixels_digest(image: Image.Image) -> str:
    """SHA-256 over size and RGB bytes. Equal pictures have equal digests, whatever their files."""
    sha = hashlib.sha256(f"{image.width} {image.height}\n".encode())
    sha.update(image.convert("RGB").tobytes())
    return "sha256:" + sha.hexdigest()


@dataclass(frozen=True)
class Preprocess:
    """RGB images to normalised pixels: bicubic to `size`, then (x / 255 - mean) / std."""

    size: int = 224
    """Side of the square that the model sees, in pixels."""
    fit: Literal["crop", "pad", "stretch"] = "crop"
    """`crop` keeps the middle, `pad` keeps the whole image on white, `stretch` changes proportions.
    """
    share: float = 1.0
    """For `crop`: side of the kept square as a share of the shorter side (0.875 is usual on
    ImageNet).
    """
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    max_pixels: int = MAX_PIXELS

    def __post_init__(self) -> None:
        if self.size < 1 or self.max_pixels < 1:
            raise ImageError(
                f"preprocess: size {self.size} and max_pixels {self.max_pixels} must be at least 1"
            )
        if self.fit not in ("crop", "pad", "stretch"):
            raise ImageError(f"preprocess: fit {self.fit!r}: expected crop, pad or stretch")
        if not 0.0 < self.share <= 1.0:
            raise ImageError(f"preprocess: share {self.share} must be above 0 and at most 1")
        if len(self.mean) != 3 or len(self.std) != 3 or not all(value > 0.0 for value in self.std):
            raise ImageError(
                f"preprocess: mean {self.mean} and std {self.std}: expected three numbers each, "
                "std above 0"
            )

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Preprocess:
        """From the fields as JSON has them.

        Raises:
            ImageError: a field is unknown, missing or out of range.
        """
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in record.items()
        }
        try:
            return cls(**fields)
        except TypeError as error:
            raise ImageError(f"preprocess: {error}") from error

    @property
    def digest(self) -> str:
        """SHA-256 over everything that decides the pixels.

        A served model must agree with its training.
        """
        fields = {**asdict(self), "algorithm": _ALGORITHM}
        del fields["max_pixels"]  # It decides what is refused, not what is seen.
        return "sha256:" + hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()

    def square(self, image: Image.Image) -> Image.Image:
        """RGB `size` × `size`. No intermediate image is larger, however thin the image is."""
        width, height = image.size
        if self.fit == "crop":
            side = min(width, height) * self.share
            left, top = (width - side) / 2, (height - side) / 2
            return image.resize(
                (self.size, self.size),
                Image.Resampling.BICUBIC,
                # `box` crops while it resizes: parts of a pixel count, and no second image is made.
                box=(left, top, left + side, top + side),
            )
        if self.fit == "stretch":
            return image.resize((self.size, self.size), Image.Resampling.BICUBIC)
        scale = self.size / max(width, height)
        inner = image.resize(
            (max(1, round(width * scale)), max(1, round(height * scale))), Image.Resampling.BICUBIC
        )
        out = Image.new("RGB", (self.size, self.size), (255, 255, 255))
        out.paste(inner, ((self.size - inner.width) // 2, (self.size - inner.height) // 2))
        return out

    def one(self, source: ImageSource, *, where: str = "image") -> Float:
        """Pixels `[3, size, size]` fp32.

        Raises:
            ImageError: it cannot be read; begins with `where`.
        """
        pixels = np.asarray(
            self.square(load_image(source, where=where, max_pixels=self.max_pixels)),
            dtype=np.float32,
        )
        mean, std = np.asarray(self.mean, np.float32), np.asarray(self.std, np.float32)
        return np.ascontiguousarray(((pixels / np.float32(255.0) - mean) / std).transpose(2, 0, 1))

    def rows(
        self, sources: Sequence[ImageSource], *, where: str = "images"
    ) -> tuple[Float, dict[int, ImageError]]:
        """Pixels `[B, 3, size, size]` fp32, and errors by row number from 0.

        A row with an error is zeros; the other rows are unharmed.
        """
        out = np.zeros((len(sources), 3, self.size, self.size), np.float32)
        wrong: dict[int, ImageError] = {}
        for row, source in enumerate(sources):
            try:
                out[row] = self.one(source, where=f"{where}, row {row + 1}")
            except ImageError as error:
                wrong[row] = error
        return out, wrong

    def __call__(self, sources: Sequence[ImageSource], *, where: str = "images") -> Float:
        """Pixels `[B, 3, size, size]` fp32.

        Raises:
            ImageError: names the first row that cannot be read, and counts the others.
        """
        out, wrong = self.rows(sources, where=where)
        if wrong:
            first, more = wrong[min(wrong)], len(wrong) - 1
            raise ImageError(f"{first} (and {more} more rows)" if more else str(first)) from first
        return out
