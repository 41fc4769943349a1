"""Weights of a graph in int8, by ONNX Runtime's dynamic quantisation."""

from __future__ import annotations

import logging
from pathlib import Path

from pidep.errors import PidepError, UsageError
from pidep.export.dynamic_int8 import quantise_products
from pidep.export.recipe import Quantisation
from pidep.export.sensitivity import Feeds, own_feeds, product_errors

__all__ = ["products_of", "quantise"]

_LOG = logging.getLogger(__name__)


def quantise(graph: Path, how: Quantisation, *, feeds: Feeds = ()) -> int:
    """Replace the constant matrices of a graph by int8, in place.

    A bank's experts are inputs, not constants, so they stay in fp32.

    Args:
        feeds: inputs of real rows, on which `max_product_error` is measured.

    Returns:
        How many matrix products are quantised.

    Raises:
        PidepError: the graph has nothing to quantise, or ONNX Runtime left a product out.
        UsageError: `max_product_error` cannot be measured, or no product is within it.
    """
    import onnx

    wanted = products_of(graph, how.min_features)
    if not wanted:
        raise PidepError(
            f"{graph.name}: no matrix has {how.min_features} features on both sides; "
            "lower `min_features` in the recipe's quantisation or use precision fp32"
        )
    if how.max_product_error is not None:
        wanted = _tolerant(graph, wanted, how, feeds)
    quantise_products(graph, wanted, how)
    # Counted in the file: a library that skips a node says nothing (onnxruntime #24459).
    nodes = onnx.load(graph, load_external_data=False).graph.node
    found = sum(node.op_type == "MatMulInteger" for node in nodes)
    if found != len(wanted):
        raise PidepError(
            f"{graph.name}: {len(wanted)} matrix products should be in int8, {found} are; "
            "use precision fp32 and report it with the version of onnxruntime"
        )
    return found


def _tolerant(graph: Path, products: list[str], how: Quantisation, feeds: Feeds) -> list[str]:
    """The products that may be in int8.

    Raises:
        UsageError: no rows to measure on, or no product is within the bound.
    """
    assert how.max_product_error is not None
    feeds = own_feeds(graph, feeds)
    if not feeds:
        raise UsageError(
            f"{graph.name}: the recipe's `max_product_error` is measured on training rows, and "
            "the task has none for this graph; remove it from the recipe, or use recipe "
            "onnx-cpu-int8"
        )
    errors = product_errors(graph, products, how, feeds)
    within = [name for name in products if errors[name] <= how.max_product_error]
    if not within:
        raise UsageError(
            f"{graph.name}: the error of every matrix product in int8 is over the recipe's "
            f"`max_product_error` {how.max_product_error:.3g}, the smallest is "
            f"{min(errors.values()):.3g}; raise it, or use precision fp32"
        )
    kept = [name for name in products if name not in within]
    _LOG.info(
        "export: %d of %d matrix products stay in fp32: %s",
        len(kept),
        len(products),
        ", ".join(kept) or "none",
    )
    return within


def products_of(graph: Path, min_features: int) -> list[str]:
    """Names of the matrix products with a constant matrix that is large enough."""
    import onnx

    # Without weights beside the graph: names and shapes are enough here.
    model = onnx.load(graph, load_external_data=False)
    shapes = {constant.name: tuple(constant.dims) for constant in model.graph.initializer}
    found = []
    for node in model.graph.node:
        if node.op_type in ("MatMul", "Gemm"):
            shape = shapes.get(node.input[1], ())
            if len(shape) == 2 and min(shape) >= min_features:
                found.append(node.name)
    return found
