"""Names of the kinds of expert, without importing a kind or pydantic."""

from __future__ import annotations

from pidep import plugins

__all__ = ["kind_names"]


def kind_names() -> tuple[str, ...]:
    """The name of every kind, also of those that other packages add."""
    return plugins.names("pidep.kinds")
