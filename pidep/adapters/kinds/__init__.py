"""The kinds of expert, one file each: a module here that ends with a `KIND` is one, and nothing else has to know of it.

May import `pidep.experts.{site,dense,attention,layout,positions}`, `pidep.kernels` and `pidep.errors`.
"""

from importlib import import_module
from pkgutil import iter_modules

from pidep.adapters.site import Kind
from pidep.errors import ExpertError, did_you_mean

__all__ = ["KINDS", "kind_named"]

KINDS: dict[str, Kind] = {found.name: import_module(f"{__name__}.{found.name}").KIND for found in iter_modules(__path__)}


def kind_named(name: str) -> Kind:
    """The kind of that name.

    Raises:
        ExpertError: there is none.
    """
    if name not in KINDS:
        raise ExpertError(f"expert kind {name!r}: expected one of {', '.join(KINDS)}{did_you_mean(name, KINDS)}")
    return KINDS[name]
