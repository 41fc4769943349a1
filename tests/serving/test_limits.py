"""Budgets of a request: refused before any work, with the limit's name; others are answered."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from pidep.errors import ImageError, ServingError
from pidep.serving.limits import Limits
from tests.conftest import png

LIMITS = Limits(
    max_text_bytes=10,
    max_request_text_bytes=25,
    max_image_bytes=20_000,
    max_request_image_bytes=30_000,
    max_image_pixels=5_000,
    max_request_image_pixels=9_000,
)


def flat(width: int, height: int, shade: int = 0) -> bytes:
    out = io.BytesIO()
    Image.new("L", (width, height), shade).save(out, "PNG")
    return out.getvalue()


def check(*texts: bytes, experts: tuple[bytes, ...] = (), images: tuple[bytes, ...] = ()) -> None:
    LIMITS.check(texts=texts, experts=experts, images=images)


def test_a_request_at_every_limit_passes() -> None:
    check(b"a" * 10, b"b" * 10, b"c" * 5, experts=(b"film",) * 3, images=(flat(50, 100), b"", b""))
    check("é".encode() * 5)
    check()


@pytest.mark.parametrize(
    ("request_parts", "message"),
    [
        ({"texts": [b"", b"a" * 11]}, r"row 2: expected at most 10 bytes of text "
         r"\(max_text_bytes\), found 11; send a smaller text"),
        ({"texts": ["é".encode() * 6]}, r"row 1: .* found 12"),
        ({"experts": [b"a" * 11]}, r"row 1: expected at most 10 bytes of text .* found 11"),
        ({"texts": [b"a" * 10] * 5}, r"expected at most 25 bytes of text in a request "
         r"\(max_request_text_bytes\), found 30 in the first 3 rows; send fewer rows"),
        ({"images": [b"", b"x" * 20_001]}, r"row 2: expected at most 20000 bytes of image "
         r"\(max_image_bytes\), found 20001"),
        ({"images": [b"x" * 20_000, b"y" * 20_000]}, r"30000 bytes of image in a request "
         r"\(max_request_image_bytes\), found 40000 in the first 2 rows"),
        ({"images": [flat(10, 501)]}, r"row 1: expected at most 5000 pixels of image "
         r"\(max_image_pixels\), found 5010"),
        ({"images": [flat(50, 100, shade) for shade in range(3)]}, r"at most 9000 pixels of image "
         r"in a request \(max_request_image_pixels\), found 10000 in the first 2 rows"),
    ],
)  # fmt: skip
def test_what_is_too_large_is_named(request_parts: dict[str, list[bytes]], message: str) -> None:
    parts = {"texts": [], "experts": [], "images": [], **request_parts}
    with pytest.raises(ServingError, match=message):
        LIMITS.check(**parts)


def test_an_image_that_rows_share_counts_once() -> None:
    shared = flat(50, 100)
    check(images=(shared, shared, b"", shared))


def test_no_image_is_decoded() -> None:
    """64 megapixels in 190 KiB are refused in the time of a header; so are damaged pixels."""
    giant = flat(8192, 8192)
    assert len(giant) < 200_000
    with pytest.raises(ServingError, match=r"row 1: expected at most 16777216 pixels .* 67108864"):
        Limits().check(texts=[], experts=[], images=[giant])
    check(images=(png(0)[:2_000],))


def test_a_header_that_cannot_be_read_is_named() -> None:
    with pytest.raises(ImageError, match="row 2: expected PNG, JPEG"):
        check(images=(b"", b"no image"))


def test_limits_travel_through_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in LIMITS.to_environment().items():
        assert name.startswith("PIDEP_MAX_")
        monkeypatch.setenv(name, value)
    assert Limits.from_environment() == LIMITS
    for name in LIMITS.to_environment():
        monkeypatch.delenv(name)
    assert Limits.from_environment() == Limits()


@pytest.mark.parametrize("value", ["", "0", "-1", "1e6", "64KiB", "٣", "9" * 5001])
def test_a_limit_that_is_no_number_is_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("PIDEP_MAX_TEXT_BYTES", value)
    with pytest.raises(ServingError, match="PIDEP_MAX_TEXT_BYTES: expected a positive whole"):
        Limits.from_environment()
