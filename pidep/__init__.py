"""pidep: π-Tuning (arXiv 2304.14381) for compiled inference: tune, interpolate, export, serve.

The public API. Names are imported on first use, so that `import pidep` imports neither torch nor
numpy:

    import pidep

    task = pidep.Task.from_rows(rows, labels={"good": "praise", "bad": "complaint"})
    result = pidep.tune(task, pool="pool", shots=16)
    pidep.predict(result, ["a fine film"])
    pidep.export(result, repo="model_repo")
    with pidep.serve("model_repo") as server, pidep.Client(server.grpc_url) as client:
        client.infer([pidep.Request("a fine film", result.name)])
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pidep.adapters.mixture import Mixture
    from pidep.api import (
        compare,
        export,
        interpolate,
        load_backbone,
        predict,
        serve,
        swap,
        tune,
    )
    from pidep.errors import PidepError
    from pidep.experts.folder import Expert
    from pidep.serving.async_client import AsyncClient
    from pidep.serving.client import Client
    from pidep.serving.request import Request
    from pidep.similarity.pool import Pool
    from pidep.tasks.task import Task

__version__ = "0.1.0"
__all__ = [
    "AsyncClient",
    "Client",
    "Expert",
    "Mixture",
    "PidepError",
    "Pool",
    "Request",
    "Task",
    "__version__",
    "compare",
    "export",
    "interpolate",
    "load_backbone",
    "predict",
    "serve",
    "swap",
    "tune",
]

_HOMES = {
    "AsyncClient": "pidep.serving.async_client",
    "Client": "pidep.serving.client",
    "Expert": "pidep.experts.folder",
    "Mixture": "pidep.adapters.mixture",
    "PidepError": "pidep.errors",
    "Pool": "pidep.similarity.pool",
    "Request": "pidep.serving.request",
    "Task": "pidep.tasks.task",
    **dict.fromkeys(
        ("compare", "interpolate", "load_backbone", "predict", "serve", "swap", "tune"),
        "pidep.api",
    ),
}
"""Public name to the module that defines it; `export` is below."""


class _CallablePackage(ModuleType):
    """The package `pidep.export`, which is also the function `pidep.export(...)`.

    Importing a submodule sets an attribute of its parent. So `pidep.export` is the package as soon
    as anything imports it, and only a callable package can be the function as well.
    """

    def __call__(self, *arguments: Any, **settings: Any) -> Any:
        return import_module("pidep.api").export(*arguments, **settings)

    @property
    def __signature__(self) -> Any:
        """For `inspect.signature` and for the help of notebooks."""
        from inspect import signature

        return signature(import_module("pidep.api").export)


class _Facade(ModuleType):
    """`pidep` itself: makes the package `export` callable when the import system sets it."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "export" and isinstance(value, ModuleType):
            value.__class__ = _CallablePackage
        super().__setattr__(name, value)


# A module's own `__setattr__` is found on its class only.
sys.modules[__name__].__class__ = _Facade


def __getattr__(name: str) -> Any:
    if name == "export":
        return import_module("pidep.export")
    if name not in _HOMES:
        raise AttributeError(f"module 'pidep' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return list(__all__)
