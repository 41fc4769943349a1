"""The place of a row in its data, and the error of a row; `pidep.inputs.places` defines them."""

from __future__ import annotations

from pidep.inputs.places import KINDS, Kind, Place, Placed, RowError

__all__ = ["KINDS", "Kind", "Place", "Placed", "RowError"]
