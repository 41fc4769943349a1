"""SHA-256 of bytes and files, written as pidep writes every digest: `sha256:<64 hex digits>`."""

from __future__ import annotations

import hashlib
from pathlib import Path

__all__ = ["bytes_digest", "file_digest"]


def bytes_digest(data: bytes) -> str:
    """`sha256:…` of bytes.

    >>> bytes_digest(b"")[:19]
    'sha256:e3b0c44298fc'
    """
    return "sha256:" + hashlib.sha256(data).hexdigest()


def file_digest(path: Path) -> str:
    """`sha256:…` of a file's content."""
    sha = hashlib.sha256()
    # In parts: a graph's weights can be larger than the memory.
    with open(path, "rb") as stream:
        while part := stream.read(1 << 20):
            sha.update(part)
    return "sha256:" + sha.hexdigest()
