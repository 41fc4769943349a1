"""Image loading: every mode and source gives the same pixels in training and in serving.

A wrong image is one line that helps.
"""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pidep.errors import ImageError, UsageError
from pidep.inputs.images import MAX_PIXELS, Preprocess, load_image, pixels_digest


def picture(height: int = 5, width: int = 7) -> np.ndarray:
    """A colourful gradient, different in every pixel and channel."""
    rows, columns = np.mgrid[0:height, 0:width]
    return np.stack(
        [rows * 40 % 256, columns * 30 % 256, (rows * 17 + columns * 50) % 256], -1
    ).astype(np.uint8)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def loaded(source: Any) -> np.ndarray:
    return np.asarray(load_image(source))


def bomb(width: int, height: int) -> bytes:
    """The header of a PNG that claims `width` × `height` pixels, in a hundred bytes."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = b""
    for kind, data in ((b"IHDR", head), (b"IDAT", zlib.compress(b"\0")), (b"IEND", b"")):
        chunks += (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )
    return b"\x89PNG\r\n\x1a\n" + chunks


def test_every_source_gives_the_same_pixels(tmp_path: Path) -> None:
    values = picture()
    data = encoded(Image.fromarray(values))
    path = tmp_path / "a.png"
    path.write_bytes(data)
    pair: dict[str, Any] = {"bytes": data, "path": None}
    for source in (
        path,
        str(path),
        data,
        Image.open(path),
        values,
        pair,
        {"bytes": None, "path": str(path)},
    ):
        np.testing.assert_array_equal(loaded(source), values)


def test_palette_with_and_without_a_transparent_colour() -> None:
    flat = np.zeros((4, 4, 3), np.uint8)
    flat[:2], flat[2:] = (200, 10, 30), (0, 90, 250)
    palette = Image.fromarray(flat).quantize(2)
    np.testing.assert_array_equal(loaded(encoded(palette)), flat)
    seen = loaded(encoded(palette, transparency=int(np.asarray(palette)[0, 0])))
    np.testing.assert_array_equal(seen[:2], np.full((2, 4, 3), 255))
    np.testing.assert_array_equal(seen[2:], flat[2:])


def test_cmyk_becomes_rgb() -> None:
    ink = Image.new("CMYK", (3, 3), (0, 255, 255, 0))  # no cyan, full magenta and yellow: red
    np.testing.assert_array_equal(
        loaded(encoded(ink, "TIFF")), np.broadcast_to([255, 0, 0], (3, 3, 3))
    )
    assert np.abs(loaded(encoded(ink, "JPEG", quality=95)).astype(int) - [255, 0, 0]).max() <= 6


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_not_cut(kind: str) -> None:
    deep = np.array([[0, 257 * 10, 257 * 128, 65535]], np.uint16)
    expected = np.array([0, 10, 128, 255])
    np.testing.assert_array_equal(loaded(encoded(Image.fromarray(deep), kind))[0, :, 0], expected)
    np.testing.assert_array_equal(loaded(deep)[0, :, 1], expected)
    np.testing.assert_array_equal(loaded(Image.fromarray(deep.astype(np.int32)))[0, :, 2], expected)


def test_gray_bilevel_and_gray_with_a_transparent_shade() -> None:
    gray = np.array([[0, 100, 255]], np.uint8)
    np.testing.assert_array_equal(loaded(encoded(Image.fromarray(gray)))[0, :, 0], [0, 100, 255])
    np.testing.assert_array_equal(
        loaded(encoded(Image.fromarray(gray), transparency=0))[0, :, 0], [255, 100, 255]
    )
    np.testing.assert_array_equal(
        loaded(encoded(Image.fromarray(gray > 50)))[0, :, 0], [0, 255, 255]
    )
    np.testing.assert_array_equal(loaded(gray > 50)[0, :, 2], [0, 255, 255])


def test_alpha_lies_over_white() -> None:
    values = np.zeros((1, 3, 4), np.uint8)
    values[0, :, 3] = 0, 128, 255
    expected = [255, 127, 0]
    for source in (
        values,
        encoded(Image.fromarray(values)),
        encoded(Image.fromarray(values).convert("LA")),
    ):
        np.testing.assert_array_equal(loaded(source)[0, :, 0], expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(picture()), "PNG", exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(loaded(data), np.asarray(upright))
    assert loaded(data).shape[:2] == ((5, 7) if orientation < 5 else (7, 5))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_a_damaged_exif_block_says_nothing() -> None:
    data = encoded(
        Image.fromarray(picture()), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff", quality=95
    )
    assert loaded(data).shape == (5, 7, 3)


def test_floats_and_the_first_frame() -> None:
    np.testing.assert_array_equal(loaded(np.array([[0.0, 0.5, 1.0]]))[0, :, 0], [0, 128, 255])
    frames = [Image.new("L", (2, 2), shade) for shade in (0, 255)]
    assert loaded(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])).max() == 0


WRONG: list[tuple[Any, str]] = [
    (b"", "found 0 bytes; remove the row"),
    (b"no image at all", "expected PNG, JPEG, .*, found something else; convert it"),
    (encoded(Image.fromarray(picture(64, 64)))[:-300], "cannot be decoded .*damaged"),
    (
        encoded(Image.fromarray(picture(64, 64)), "JPEG")[:400],
        "(cannot be decoded|cannot be read) .*damaged",
    ),
    (bomb(60_000, 60_000), f"expected at most {MAX_PIXELS} pixels, found"),
    (
        bomb(9_000, 9_000),
        f"expected at most {MAX_PIXELS} pixels, found 9000 x 9000 = 81000000; scale it down",
    ),
    (
        Path("/nowhere/a.png"),
        "'/nowhere/a.png': expected an image file, found nothing; check the path",
    ),
    (Path("/"), "expected an image file, found a folder"),
    ({"bytes": None, "path": None}, "expected bytes or a path, found neither"),
    ({}, r"found neither \(columns none\)"),
    ({"bytes": "text"}, "bytes is a str"),
    (3, "expected a path, bytes, an image or an array, found int"),
    (np.zeros((2, 2, 2), np.uint8), r"found \[2, 2, 2\]; channels come last"),
    (np.zeros(4, np.uint8), r"found \[4\]; channels come last"),
    (np.zeros((0, 4), np.uint8), "expected at least one pixel, found 4 x 0"),
    (np.full((1, 1), 2.0), "expected floats from 0 to 1, found 2 to 2"),
    (np.full((1, 1), np.nan), "expected floats from 0 to 1, found nan"),
    (np.zeros((1, 1), np.int64), "expected bool, uint8, uint16 or floats, found int64"),
    (
        Image.fromarray(np.full((1, 1), 70_000, np.int32)),
        "expected 16 bits a pixel, found values 70000 to 70000",
    ),
    (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n", "found something else"),
]


@pytest.mark.parametrize(("source", "message"), WRONG, ids=range(len(WRONG)))
def test_a_wrong_image_is_one_line_that_begins_with_the_place(source: Any, message: str) -> None:
    with pytest.raises(ImageError, match=message) as caught:
        load_image(source, where="photos.parquet, row 3")
    assert str(caught.value).startswith("photos.parquet, row 3")
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, UsageError)


def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "e.png").write_bytes(b"")
    with pytest.raises(ImageError, match=r"e\.png': expected an encoded image, found 0 bytes"):
        load_image(tmp_path / "e.png")


def test_a_bomb_is_refused_before_anything_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("decoded"))
    with pytest.raises(ImageError, match="at most 100 pixels, found 11 x 10 = 110"):
        load_image(bomb(11, 10), max_pixels=100)


def test_one_wrong_row_leaves_the_others_unharmed() -> None:
    prepare = Preprocess(size=8)
    good = picture()
    pixels, wrong = prepare.rows([good, b"", good], where="batch")
    assert list(wrong) == [1]
    assert str(wrong[1]).startswith("batch, row 2: ")
    assert not pixels[1].any()
    np.testing.assert_array_equal(pixels[[0, 2]], prepare([good, good]))
    with pytest.raises(ImageError, match=r"batch, row 2: .* \(and 1 more rows\)"):
        prepare([good, b"", b"x"], where="batch")


# Pixels of pillow 13. Its 8-bit resampling is integer arithmetic, so they are the same on every
# machine. Another version may differ by 1. GOLDEN_PAD is the second column: 7 x 5 in a square of 4
# becomes 4 x 3 and a row of white.
GOLDEN_CROP = [[34, 48, 102], [34, 132, 157], [126, 48, 142], [126, 132, 129]]
GOLDEN_PAD = [
    [14, 62, 113],
    [80, 62, 144],
    [146, 62, 174],
    [255, 255, 255],
]


def test_golden_pixels() -> None:
    image = load_image(picture())
    crop = np.asarray(Preprocess(size=2).square(image)).reshape(-1, 3)
    np.testing.assert_allclose(crop.astype(int), GOLDEN_CROP, atol=1)
    pad = np.asarray(Preprocess(size=4, fit="pad").square(image))
    np.testing.assert_allclose(pad[:, 1].astype(int), GOLDEN_PAD, atol=1)
    shifted = Preprocess(size=2, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)).one(
        picture()
    )
    expected = (np.array(GOLDEN_CROP) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(shifted.reshape(3, -1).T, expected, atol=0.02)


def test_the_digest_is_stable_and_changes_with_every_parameter() -> None:
    base = Preprocess()
    assert base.digest == "sha256:3758ccf4077fab279544a4c5d8dbcef8192e3559303ea54144a58c38b86509fe"
    others = [
        Preprocess(size=128),
        Preprocess(fit="pad"),
        Preprocess(share=0.875),
        Preprocess(mean=(0.4, 0.5, 0.5)),
        Preprocess(std=(0.4, 0.5, 0.5)),
    ]
    assert len({base.digest, *(other.digest for other in others)}) == 6
    assert Preprocess(max_pixels=100).digest == base.digest


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size": 0}, "must be at least 1"),
        ({"fit": "squeeze"}, "'squeeze': expected crop, pad or stretch"),
        ({"share": 0.0}, "must be above 0"),
        ({"std": (0.5, 0.0, 0.5)}, "std above 0"),
    ],
)
def test_wrong_parameters(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ImageError, match=message):
        Preprocess(**fields)


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    size=st.integers(1, 24),
    fit=st.sampled_from(["crop", "pad"]),
    shade=st.integers(0, 255),
)
def test_any_shape_gives_a_square_and_one_shade_stays_one(
    height: int, width: int, size: int, fit: Any, shade: int
) -> None:
    image = load_image(np.full((height, width), shade, np.uint8))
    seen = np.asarray(Preprocess(size=size, fit=fit).square(image))
    assert seen.shape == (size, size, 3)
    assert set(np.unique(seen)) <= ({shade} if fit == "crop" or height == width else {shade, 255})


@settings(max_examples=60, deadline=None)
@pytest.mark.filterwarnings("ignore::UserWarning")  # decoders warn where they repair an image
@given(
    cut=st.integers(0, 200),
    flip=st.integers(0, 200),
    kind=st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"]),
)
def test_damage_is_an_image_error_or_an_image(cut: int, flip: int, kind: str) -> None:
    data = bytearray(encoded(Image.fromarray(picture(9, 11)), kind))
    if flip < len(data):
        data[flip] ^= 0xFF
    [pixels], wrong = Preprocess(size=4).rows([bytes(data[: max(0, len(data) - cut)])])
    assert all("\n" not in str(error) for error in wrong.values())
    assert bool(wrong) != bool(pixels.any())


def test_a_very_thin_image_is_never_large_on_the_way() -> None:
    thin = np.zeros((1, 4_000_000), np.uint8)
    assert Preprocess(size=32).one(thin).shape == (3, 32, 32)
    assert Preprocess(size=32, fit="pad").one(thin).shape == (3, 32, 32)


def test_equal_pictures_have_equal_digests_whatever_the_file() -> None:
    image = Image.fromarray(picture())
    digests = {pixels_digest(load_image(encoded(image, kind))) for kind in ("PNG", "BMP", "TIFF")}
    assert len(digests) == 1
    assert pixels_digest(load_image(picture(7, 5))) not in digests


def test_it_imports_no_torch() -> None:
    code = (
        "import sys, pidep.inputs.images\nprint(*sorted({name.split('.')[0] for name in "
        "sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "transformers", "torchvision", "datasets"} & set(done.stdout.split())
