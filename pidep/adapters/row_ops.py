"""Operations between tensors of a batch `[B, …]` and tensors of its experts `[G, …]`.

G is B, or 1 where all rows name the same expert. `torch.export` has no axis that is 1 or B: it
would fix one of the two. So each operation is an operator of its own here, and the export
translates it into ONNX operators that broadcast (`pidep.export.row_ops`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, cast

import torch
from torch import Tensor

__all__ = ["add", "expand", "index", "matmul", "multiply", "part", "weigh"]

P = ParamSpec("P")
_Function = Callable[P, Tensor]


def _operator(fake: Callable[..., Tensor]) -> Callable[[_Function[P]], _Function[P]]:
    """Make a function the operator `pidep::NAME`, which `torch.export` does not look into.

    Args:
        fake: gives an empty tensor of the result's shape, for the same arguments.
    """

    def made(function: _Function[P]) -> _Function[P]:
        operator = torch.library.custom_op(f"pidep::{function.__name__}", function, mutates_args=())
        operator.register_fake(fake)
        return cast(_Function[P], operator)

    return made


def _product_shape(x: Tensor, factor: Tensor, transposed: bool = False) -> Tensor:
    return x.new_empty(*x.shape[:-1], factor.shape[-2 if transposed else -1])


@_operator(_product_shape)
def matmul(x: Tensor, factor: Tensor, transposed: bool = False) -> Tensor:
    """x `[B or 1, T, n]` times factor `[G, n, m]`, or `[G, m, n]` transposed, to `[B, T, m]`."""
    return x @ (factor.transpose(-1, -2) if transposed else factor)


@_operator(lambda x, own: torch.empty_like(x))
def add(x: Tensor, own: Tensor) -> Tensor:
    """x `[B, …]` plus own, whose axes are as long as those of x, or 1."""
    return x + own


@_operator(lambda x, own: torch.empty_like(x))
def multiply(x: Tensor, own: Tensor) -> Tensor:
    """x `[B, …]` times own, whose axes are as long as those of x, or 1."""
    return x * own


@_operator(lambda own, like: own.new_empty(like.shape[0], *own.shape[1:]))
def expand(own: Tensor, like: Tensor) -> Tensor:
    """Own `[G, …]` as `[B, …]`, with a row for each row of `like`."""
    # A copy: an operator must not give back its input's memory.
    return own.expand(like.shape[0], *own.shape[1:]).clone()


def _part_shape(x: Tensor, axis: int, number: int, count: int) -> Tensor:
    return x.new_empty([size // (count if at == axis else 1) for at, size in enumerate(x.shape)])


@_operator(_part_shape)
def part(x: Tensor, axis: int, number: int, count: int) -> Tensor:
    """Part `number` of `count` equal parts along an axis."""
    return x.chunk(count, axis)[number].clone()


def _index_shape(slots: Tensor, places: Tensor, stride: int) -> Tensor:
    sites, _, size = places.shape
    return slots.new_empty(slots.shape[0], sites * slots.shape[1] * size)


@_operator(_index_shape)
def index(slots: Tensor, places: Tensor, stride: int) -> Tensor:
    """Numbers of the rows that experts have in a bank's input `[E·stride, width]`.

    Args:
        slots: `[G, K]` int64.
        places: `[S, 1, size]` int64, the rows of some sites in each expert.

    Returns:
        `[G, S·K·size]`: site by site, and for each site expert by expert.
    """
    return ((slots * stride)[:, None, :, None] + places).flatten(1)


def _weights_shape(weights: Tensor, columns: Tensor, size: int) -> Tensor:
    return weights.new_empty(weights.shape[0], 1, columns.shape[0] * weights.shape[1] * size)


@_operator(_weights_shape)
def weigh(weights: Tensor, columns: Tensor, size: int) -> Tensor:
    """The weight of every row that `index` names, `[G, 1, S·K·size]`.

    Args:
        weights: `[G, K, all sites]`.
        columns: `[S]` int64, the sites.
    """
    some = weights[:, :, columns].transpose(1, 2)  # [G, S, K]
    return some[..., None].expand(-1, -1, -1, size).flatten(1)[:, None]
