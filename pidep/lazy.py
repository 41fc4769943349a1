"""Public names of a package that are imported on first use (PEP 562)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

__all__ = ["lazy_names"]


def lazy_names(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of a package whose `__init__` imports nothing.

    A light module can then be imported from a package that also has heavy ones.

    Args:
        package: the package's `__name__`.
        homes: public name to the module that defines it.

    >>> lazy_names("pidep.files", {"file_digest": "pidep.files.digest"})("file_digest").__name__
    'file_digest'
    """

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(homes[name]), name)

    return get
