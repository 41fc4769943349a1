"""One run of the exporter: a module and its signature to an ONNX file."""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pidep.artifacts import names
from pidep.errors import PidepError
from pidep.export.attention import attention_translation
from pidep.export.row_ops import translations

__all__ = ["MOST_INSIDE", "Signature", "save_graph", "to_onnx"]

MOST_INSIDE = 2**31 - 2**27
"""Bytes of weights in one ONNX file: a protobuf message has at most 2 GiB, and the nodes are in it,
too."""


@dataclass(frozen=True)
class Signature:
    """What a graph takes and gives."""

    arguments: dict[str, Any]
    """Example arguments of the module's `forward`, by name."""
    dynamic: dict[str, Any]
    """The same structure; axis number to `torch.export.Dim`, for axes of any size."""
    inputs: list[str]
    outputs: list[str]


def to_onnx(module: nn.Module, signature: Signature, *, opset: int, form: str) -> Any:
    """`torch.onnx.export`, quiet; the program, which shares its weights with the module."""
    # The exporter logs and warns about each of its steps, also where all went well.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            return torch.onnx.export(
                module.eval(),
                kwargs=signature.arguments,
                dynamo=True,
                opset_version=opset,
                dynamic_shapes=signature.dynamic,
                input_names=signature.inputs,
                output_names=signature.outputs,
                custom_translation_table={**translations(opset), **attention_translation(opset)},
                verbose=False,
                optimize=True,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            first = (str(error).splitlines() or ["?"])[0]
            raise PidepError(f"export of the {form} graph failed: {first}") from error


def save_graph(model: Any, path: Path, *, beside: bool) -> None:
    """Write a graph: in one file, or with its weights beside it in `<path>.data`.

    Both files have the same bytes each time: the weights lie in the order of the graph.
    """
    import onnx_ir

    _strip_metadata(model)
    weights = [one.const_value for one in model.graph.initializers.values()]
    beside = beside or sum(one.nbytes for one in weights if one is not None) > MOST_INSIDE
    data = path.name + names.DATA_SUFFIX if beside else None
    # One tensor at a time goes to the file, so the weights are not in memory a second time.
    onnx_ir.save(model, path, external_data=data)


def _strip_metadata(model: Any) -> None:
    """Remove what the exporter notes about its own source code.

    Stack traces hold the paths of this checkout. With them, the digest of one and the same graph
    would depend on the folder in which it was exported.
    """
    model.metadata_props.clear()
    for graph in (model.graph, *model.functions.values()):
        graph.metadata_props.clear()
        for node in graph.all_nodes():
            node.metadata_props.clear()
            for value in (*node.inputs, *node.outputs):
                if value is not None:
                    value.metadata_props.clear()
        for value in (*graph.inputs, *graph.outputs):
            value.metadata_props.clear()
    for value in model.graph.initializers.values():
        value.metadata_props.clear()
