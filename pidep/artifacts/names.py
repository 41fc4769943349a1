"""Names that client and server agree on. Imports nothing."""

from __future__ import annotations

__all__ = ["BACKBONE", "BANK"]

BANK = "pidep_bank"
"""The bank's model."""
BACKBONE = "@backbone"
"""Asked for in the place of an expert: the bare backbone, which has no labels but embeds candidates."""
