"""Which values of an exported graph are the outputs of which modules of the backbone."""

from __future__ import annotations

import ast
from typing import Any

__all__ = ["ModuleValues", "module_values", "plain_name"]

ModuleValues = dict[str, list[str]]
"""Module of the backbone to the values of the graph that leave it, in the order of the graph."""

_SCOPES = "pkg.torch.onnx.name_scopes"
_BACKBONE = "model."
"""The exported module holds the backbone under this name."""


def module_values(model: Any) -> ModuleValues:
    """The values of a graph that torch has just exported, with its notes about modules.

    A value leaves a module when a node outside reads it. Only numbers in floating point count.
    """
    modules = {node: _modules_of(node) for node in model.graph}
    found: ModuleValues = {}
    for node, inside in modules.items():
        for value in node.outputs:
            if value.dtype is None or not value.dtype.is_floating_point():
                continue
            readers = [modules[reader] for reader in value.consumers()]
            for module in inside:
                outside = any(module not in others for others in readers)
                if outside or value.is_graph_output():
                    found.setdefault(module, []).append(value.name)
    return found


def _modules_of(node: Any) -> frozenset[str]:
    """The modules in whose forward pass a node was made."""
    scopes = ast.literal_eval(node.metadata_props.get(_SCOPES, "[]"))
    return frozenset(
        plain_name(scope.removeprefix(_BACKBONE)) for scope in scopes if scope.startswith(_BACKBONE)
    )


def plain_name(module: str) -> str:
    """A module's name without the layers that experts wrap around it.

    >>> plain_name("layer.0.query.base.base")
    'layer.0.query'
    """
    return ".".join(part for part in module.split(".") if part != "base")
