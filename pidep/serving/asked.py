"""A row of a request, as the server's stub hands it to what answers."""

from __future__ import annotations

from typing import NamedTuple

from pidep.inputs.row import Row

__all__ = ["Asked"]


class Asked(NamedTuple):
    """One row of a request."""

    row: Row
    expert: str = ""
    """What the row names; empty for a merged model."""
    key: bytes = b""
    """What decides between the versions of the name; empty for the row's content."""
