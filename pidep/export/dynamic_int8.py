"""ONNX Runtime's dynamic quantisation of chosen matrix products."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from pidep.artifacts.names import DATA_SUFFIX
from pidep.export.recipe import Quantisation

__all__ = ["quantise_products"]


def quantise_products(graph: Path, wanted: Sequence[str], how: Quantisation) -> None:
    """Replace the constant matrices of the named products by int8, in place."""
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
                # ONNX Runtime makes a MatMul of this name of a Gemm first.
                nodes_to_quantize=[*wanted, *(f"{name}_MatMul" for name in wanted)],
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


def _no_advice(record: logging.LogRecord) -> bool:
    return "pre-processing before quantization" not in record.getMessage()
