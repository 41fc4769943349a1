"""Small files that are costly to decode are refused from their headers."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pidep.errors import ImageError
from pidep.inputs.image_cost import MAX_SCANS, count_scans
from pidep.inputs.images import MAX_PIXELS, encoded_pixels, load_image
from tests.conftest import picture


def jpeg(**options: object) -> bytes:
    out = io.BytesIO()
    Image.fromarray(picture(0)).save(out, "JPEG", **options)
    return out.getvalue()


def with_scans(more: int) -> bytes:
    """A progressive JPEG whose last scan is repeated."""
    once = jpeg(progressive=True)
    last = once[once.rindex(b"\xff\xda") : -2]
    return once[:-2] + last * more + once[-2:]


def tiled(width: int, height: int, tile: int) -> bytes:
    """A gray TIFF of one tile. pillow writes no tiles. Only small ones have all their data."""
    data = zlib.compress(bytes(min(tile, 64) ** 2))
    short = {258: 8, 259: 8, 262: 1, 277: 1}
    long = {256: width, 257: height, 322: tile, 323: tile, 324: 0, 325: len(data)}
    tags = sorted(short | long)
    long[324] = 8 + 2 + 12 * len(tags) + 4
    directory = b"".join(
        struct.pack("<HHII", tag, 3 if tag in short else 4, 1, (short | long)[tag]) for tag in tags
    )
    head = struct.pack("<2sHIH", b"II", 42, 8, len(tags))
    return head + directory + bytes(4) + data


def test_scans_are_counted() -> None:
    assert count_scans(jpeg()) == 1
    progressive = count_scans(jpeg(progressive=True))
    assert 5 < progressive < 15
    assert count_scans(with_scans(7)) == progressive + 7


def test_markers_inside_a_segment_are_no_scans() -> None:
    """EXIF holds a thumbnail, which is a JPEG itself; its end is not the end of the picture."""
    thumbnail = with_scans(MAX_SCANS)[:60_000]
    comment = b"\xff\xfe" + struct.pack(">H", len(thumbnail) + 2) + thumbnail
    for plain in (jpeg(), jpeg(progressive=True)):
        assert count_scans(plain[:2] + comment + plain[2:]) == count_scans(plain)
    hidden = with_scans(MAX_SCANS)
    closing = b"\xff\xfe\x00\x04\xff\xd9"
    assert count_scans(hidden[:2] + closing + hidden[2:]) > MAX_SCANS


def test_what_follows_the_first_picture_is_not_counted() -> None:
    """A phone appends a film, or further pictures."""
    plain = jpeg()
    assert count_scans(plain + with_scans(MAX_SCANS)) == 1
    assert load_image(plain + with_scans(MAX_SCANS)).size == (64, 64)


@pytest.mark.parametrize("as_file", [False, True])
def test_a_jpeg_of_many_scans_is_refused(tmp_path: Path, as_file: bool) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(with_scans(MAX_SCANS))
    with pytest.raises(ImageError, match="at most 100 scans in a JPEG, found more; save it again"):
        load_image(path if as_file else path.read_bytes())
    with pytest.raises(ImageError, match="row 3: expected at most 100 scans"):
        encoded_pixels(path.read_bytes(), where="row 3")


def test_a_jpeg_of_some_scans_is_read() -> None:
    assert load_image(with_scans(50)).size == (64, 64)


def test_a_tiff_with_tiles_is_read() -> None:
    assert not np.asarray(load_image(tiled(20, 30, 32))).any()
    assert encoded_pixels(tiled(20, 30, 32)) == 32 * 32
    assert encoded_pixels(tiled(40, 20, 16)) == 40 * 20


def test_a_tile_larger_than_its_image_is_refused() -> None:
    """With all its data, the file has 260 kB and one pixel; decoding would take 256 MiB."""
    with pytest.raises(ImageError, match=rf"at most {MAX_PIXELS} pixels, found 16384 x 16384"):
        load_image(tiled(1, 1, 2**14))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_pixels_are_known_from_the_header(kind: str) -> None:
    out = io.BytesIO()
    Image.new("RGB", (640, 480)).save(out, kind)
    # The end is cut off, so nothing can have been decoded.
    head = out.getvalue() if kind in ("WEBP", "GIF") else out.getvalue()[:-100]
    assert encoded_pixels(head) == 640 * 480


def test_frames_behind_the_first_cost_nothing() -> None:
    frames = [Image.new("RGB", (8, 6), (shade, 0, 0)) for shade in range(0, 250, 10)]
    for kind in ("GIF", "TIFF", "WEBP", "MPO"):
        out = io.BytesIO()
        frames[0].save(out, kind, save_all=True, append_images=frames[1:])
        assert encoded_pixels(out.getvalue()) == 8 * 6
        assert load_image(out.getvalue()).size == (8, 6)


def test_a_turned_image_has_as_many_pixels() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = jpeg(exif=exif.tobytes())
    assert encoded_pixels(turned) == 64 * 64
