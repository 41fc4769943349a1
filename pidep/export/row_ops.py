"""The operators of `pidep.adapters.row_ops` in ONNX, each as few standard nodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from pidep.adapters import row_ops

__all__ = ["translations"]


def translations(opset: int) -> dict[Callable[..., Any], Callable[..., Any]]:
    """`custom_translation_table` for one run of `torch.onnx.export`."""
    from onnxscript import values

    op: Any = values.Opset("", opset)
    # Parts of one tensor share one Split, so its outputs are kept by the value that they split.
    splits: dict[tuple[int, int], Any] = {}

    def matmul(x: Any, factor: Any, transposed: bool = False) -> Any:
        # ONNX Runtime makes one node of both; TensorRT takes them as they are.
        return op.MatMul(x, op.Transpose(factor, perm=[0, 2, 1]) if transposed else factor)

    def add(x: Any, own: Any) -> Any:
        return op.Add(x, own)

    def multiply(x: Any, own: Any) -> Any:
        return op.Mul(x, own)

    def expand(own: Any, like: Any) -> Any:
        rows = op.Shape(like, start=0, end=1)
        ones = op.Constant(value_ints=[1] * (len(own.shape) - 1))
        return op.Expand(own, op.Concat(rows, ones, axis=0))

    def part(x: Any, axis: int, number: int, count: int) -> Any:
        if count == 1:
            return op.Identity(x)
        if (id(x), count) not in splits:
            splits[id(x), count] = op.Split(x, axis=axis, num_outputs=count, _outputs=count)
        return splits[id(x), count][number]

    def index(slots: Any, places: Any, stride: int) -> Any:
        first = op.Mul(slots, op.Constant(value_int=stride))
        first = op.Unsqueeze(first, op.Constant(value_ints=[1, 3]))
        return op.Reshape(op.Add(first, places), op.Constant(value_ints=[0, -1]))

    def weigh(weights: Any, columns: Any, size: int) -> Any:
        some = op.Transpose(op.Gather(weights, columns, axis=2), perm=[0, 2, 1])
        if size > 1:
            some = op.Expand(
                op.Unsqueeze(some, op.Constant(value_ints=[3])),
                op.Constant(value_ints=[1, 1, 1, size]),
            )
        return op.Reshape(some, op.Constant(value_ints=[0, 1, -1]))

    made: dict[str, Callable[..., Any]] = {
        "matmul": matmul,
        "add": add,
        "multiply": multiply,
        "expand": expand,
        "part": part,
        "index": index,
        "weigh": weigh,
    }
    return {getattr(torch.ops.pidep, name).default: made[name] for name in row_ops.__all__}
