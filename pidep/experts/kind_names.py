"""Names of the kinds of expert. Settings check names with this file, which imports no kind."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator

from pidep import plugins

__all__ = ["KindName", "kind_names"]


def kind_names() -> tuple[str, ...]:
    """The name of every kind, also of those that other packages add."""
    return plugins.names("pidep.kinds")


def _known_kind(name: str) -> str:
    if name not in kind_names():
        raise ValueError(f"expected one of {', '.join(kind_names())}")
    return name


# Not a Literal: an installed package can add kinds.
KindName = Annotated[str, AfterValidator(_known_kind)]
"""Type of a setting that names a kind."""
