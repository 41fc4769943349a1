"""The type of a setting that names a kind of expert."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator

from pidep.experts.kind_names import kind_names

__all__ = ["KindName"]


def _known_kind(name: str) -> str:
    if name not in kind_names():
        raise ValueError(f"expected one of {', '.join(kind_names())}")
    return name


# Not a Literal: an installed package can add kinds.
KindName = Annotated[str, AfterValidator(_known_kind)]
"""Type of a setting that names a kind."""
