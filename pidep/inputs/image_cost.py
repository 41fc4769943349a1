"""What decoding an image costs beyond its width times height, read from its headers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from PIL import Image

__all__ = ["MAX_SCANS", "count_scans", "tile_size"]

# A progressive JPEG is decoded once a scan. A scan can be 16 bytes, and then costs 2 ms at 4
# megapixels: a file of some kilobytes would take minutes.
MAX_SCANS = 100
"""Most scans of a JPEG, as in libtiff; ten are usual."""
# In the data behind a scan's header, 0xFF precedes 0 or the number of a restart.
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
_TILE_WIDTH, _TILE_LENGTH = 322, 323


def tile_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of a TIFF's tiles; 1 × 1 where there are none.

    A whole tile is decoded, even where the image is a corner of it.
    """
    tags: Mapping[int, Any] = getattr(image, "tag_v2", {})
    return int(tags.get(_TILE_WIDTH, 1)), int(tags.get(_TILE_LENGTH, 1))


def count_scans(jpeg: bytes | memoryview) -> int:
    """Number of scans of a JPEG's first picture. Counting ends at one more than `MAX_SCANS`."""
    scans, at = 0, 2
    # Segments are skipped by their length: EXIF can hold a thumbnail with markers of its own.
    while scans <= MAX_SCANS and (found := _MARKER.search(jpeg, at)):
        marker = jpeg[found.end() - 1]
        if marker == _END_OF_IMAGE:
            break
        scans += marker == _START_OF_SCAN
        at = found.end() + max(2, int.from_bytes(jpeg[found.end() : found.end() + 2], "big"))
    return scans
