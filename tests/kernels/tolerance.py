"""One table: the largest error of a result, as a share of the largest value of the float64 one."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["DTYPES", "TOLERANCE", "assert_near", "error_of"]

TOLERANCE = {
    torch.float64: 1e-12,
    torch.float32: 3e-6,  # sums of a few thousand terms, each rounded to 6e-8
    # one rounding to 8 bits is 4e-3, cut off instead of rounded (interpreter) 8e-3; a second one
    # inside a product
    torch.bfloat16: 1.2e-2,
    torch.float16: 1.5e-3,  # the same with 11 bits
}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def error_of(found: Tensor, want: Tensor) -> float:
    """Shapes must agree; NaN and Inf are infinitely wrong."""
    assert found.shape == want.shape
    found, want = found.detach(), want.detach()
    if not want.numel():
        return 0.0
    error = float(
        (found.double() - want.double()).abs().max() / want.double().abs().max().clamp(min=1e-30)
    )
    return error if error == error else float("inf")


def assert_near(
    found: Tensor, want: Tensor, dtype: torch.dtype | None = None, *, roundings: int = 1
) -> None:
    """A tolerance that zeros would pass is a bug: the error of zeros is 1. `roundings`: to 16 bits,
    one behind the other.
    """
    dtype = dtype or found.dtype
    limit = TOLERANCE[dtype] * (roundings if dtype.itemsize == 2 else 1)
    error = error_of(found, want)
    assert error <= limit, f"error {error:.3g}, allowed {limit:.3g}"
