"""What one request may hold. It is checked before any text is tokenised or any image decoded."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields

from pidep.errors import ServingError

__all__ = ["RESIDENT_BYTES", "Limits", "resident_bytes_from_environment"]

RESIDENT_BYTES = "PIDEP_RESIDENT_BYTES"
"""Variable: most bytes of experts that a bank holds in memory."""


def resident_bytes_from_environment() -> int | None:
    """The bound in this process's environment; None where there is none.

    Raises:
        ServingError: the variable is not a positive whole number.
    """
    text = os.environ.get(RESIDENT_BYTES)
    return None if text is None else _whole_number(RESIDENT_BYTES, text)


def _whole_number(variable: str, text: str) -> int:
    # Length first: int() refuses very long numbers with a traceback.
    if not (len(text) < 19 and text.isascii() and text.isdigit() and int(text)):
        raise ServingError(
            f"{variable}: expected a positive whole number, found {text[:60]!r}; "
            "correct it, and start the server again"
        )
    return int(text)


@dataclass(frozen=True)
class Limits:
    """Largest sizes of one row and of one request.

    A model answers one batch at a time, so a request that is too large makes all clients wait.
    """

    # Measured on one core: tokenising costs 0.7 s a MiB, decoding 0.03 s a megapixel.
    max_text_bytes: int = 64 * 2**10
    """UTF-8 bytes of a text."""
    max_request_text_bytes: int = 2**20
    """UTF-8 bytes of all texts and expert names of a request."""
    max_image_bytes: int = 16 * 2**20
    """Bytes of an encoded image."""
    max_request_image_bytes: int = 32 * 2**20
    """Bytes of all encoded images of a request."""
    max_image_pixels: int = 16 * 2**20
    """Width times height of an image."""
    max_request_image_pixels: int = 32 * 2**20
    """Pixels of all different images of a request."""

    @classmethod
    def variables(cls) -> dict[str, str]:
        """Limit to environment variable: `max_text_bytes` is `PIDEP_MAX_TEXT_BYTES`."""
        return {one.name: f"PIDEP_{one.name.upper()}" for one in fields(cls)}

    def to_environment(self) -> dict[str, str]:
        """Variables for Triton Server's process. Its models inherit them."""
        return {variable: str(getattr(self, name)) for name, variable in self.variables().items()}

    @classmethod
    def from_environment(cls) -> Limits:
        """The limits in this process's environment; a missing variable means the default.

        Raises:
            ServingError: a variable is not a positive whole number.
        """
        found: dict[str, int] = {}
        for name, variable in cls.variables().items():
            text = os.environ.get(variable)
            if text is not None:
                found[name] = _whole_number(variable, text)
        return cls(**found)

    def check(
        self,
        *,
        texts: Sequence[bytes],
        experts: Sequence[bytes],
        images: Sequence[bytes],
        columns: Sequence[bytes] = (),
        keys: Sequence[bytes] = (),
        candidates: Sequence[bytes] = (),
        decodings: Sequence[bytes] = (),
    ) -> None:
        """Refuse a request that is too large; of its images, only the headers are read.

        Args:
            experts: the name of each row's expert.
            columns: each row's columns as JSON, under the limits of texts.
            keys: what decides between the versions of a name.
            candidates: each row's candidates as JSON, under the limits of texts.
            decodings: how each row is decoded, as JSON, under the limits of texts.

        Raises:
            ServingError: a row or the request is over a limit; the message names the limit.
            ImageError: an image's header cannot be read.
        """
        # Bytes first: they are counted already, and pixels cost a look at each header.
        self._check("text", "bytes", map(len, texts))
        self._check("text", "bytes", map(len, columns))
        # Names and keys count as texts here: a limit of their own is not worth a setting.
        self._check("text", "bytes", map(len, experts))
        for others in (keys, candidates, decodings):
            self._check("text", "bytes", map(len, others))
        self._check("image", "bytes", map(len, images))
        if any(images):
            self._check("image", "pixels", _pixels(images))

    def _check(self, what: str, unit: str, sizes: Iterable[int]) -> None:
        """Refuse a row, or a sum of rows, that is above the two limits of that name."""
        one, all_rows = f"max_{what}_{unit}", f"max_request_{what}_{unit}"
        total = 0
        for row, size in enumerate(sizes, 1):
            if size > (most := getattr(self, one)):
                raise ServingError(
                    f"row {row}: expected at most {most} {unit} of {what} ({one}), found {size}; "
                    f"send a smaller {what}"
                )
            total += size
            if total > (most := getattr(self, all_rows)):
                raise ServingError(
                    f"expected at most {most} {unit} of {what} in a request ({all_rows}), found "
                    f"{total} in the first {row} rows; send fewer rows in a request"
                )


def _pixels(images: Sequence[bytes]) -> Iterator[int]:
    """Pixels of each row's image. An image that rows share is decoded once, and counts once."""
    # Imported here: the command line reads the defaults above, and starts without pillow.
    from pidep.inputs.images import encoded_pixels

    seen: set[bytes] = set()
    for row, image in enumerate(images, 1):
        known = not image or image in seen
        seen.add(image)
        yield 0 if known else encoded_pixels(image, where=f"row {row}")
