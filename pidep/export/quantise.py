"""Weights of a graph in int8, by ONNX Runtime's dynamic quantisation."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pidep.artifacts.names import DATA_SUFFIX
from pidep.errors import PidepError
from pidep.export.recipe import Quantisation

__all__ = ["quantise"]


def quantise(graph: Path, how: Quantisation) -> int:
    """Replace the constant matrices of a graph by int8, in place.

    A bank's experts are inputs, not constants, so they stay in fp32.

    Returns:
        How many matrix products are quantised.

    Raises:
        PidepError: the graph has nothing to quantise, or ONNX Runtime left a product out.
    """
    import onnx

    # Without weights beside the graph: names and shapes are enough here.
    model = onnx.load(graph, load_external_data=False)
    wanted = list(_products(model, how.min_features))
    if not wanted:
        raise PidepError(
            f"{graph.name}: no matrix has {how.min_features} features on both sides; "
            "lower `min_features` in the recipe's quantisation or use precision fp32"
        )
    _dynamic(graph, wanted, how)
    # Counted in the file: a library that skips a node says nothing (onnxruntime #24459).
    nodes = onnx.load(graph, load_external_data=False).graph.node
    found = sum(node.op_type == "MatMulInteger" for node in nodes)
    if found != len(wanted):
        raise PidepError(
            f"{graph.name}: {len(wanted)} matrix products should be in int8, {found} are; "
            "use precision fp32 and report it with the version of onnxruntime"
        )
    return found


def _dynamic(graph: Path, wanted: list[str], how: Quantisation) -> None:
    """Run ONNX Runtime's quantisation on the named products, in place."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    beside = graph.with_name(graph.name + DATA_SUFFIX).exists()
    # ONNX Runtime advises a shape inference that the exporter has done already.
    logging.getLogger().addFilter(_no_advice)
    try:
        # In a folder of its own: onnx appends to a file of weights that is there already.
        with TemporaryDirectory(dir=graph.parent) as folder:
            quantize_dynamic(
                graph,
                Path(folder) / graph.name,
                op_types_to_quantize=["MatMul", "Gemm"],
                nodes_to_quantize=wanted,
                per_channel=how.per_channel,
                reduce_range=how.reduce_range,
                weight_type=QuantType.QInt8,
                use_external_data_format=beside,
                extra_options={"MatMulConstBOnly": True},
            )
            for made in Path(folder).iterdir():
                made.replace(graph.parent / made.name)
    finally:
        logging.getLogger().removeFilter(_no_advice)


def _products(model: Any, min_features: int) -> Iterator[str]:
    """Names of the products with a constant matrix that is large enough."""
    shapes = {constant.name: tuple(constant.dims) for constant in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in ("MatMul", "Gemm"):
            shape = shapes.get(node.input[1], ())
            if len(shape) == 2 and min(shape) >= min_features:
                yield node.name


def _no_advice(record: logging.LogRecord) -> bool:
    return "pre-processing before quantization" not in record.getMessage()
