"""One table of tolerances: the largest error relative to the largest value of the float64
result.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["DTYPES", "TOLERANCE", "assert_near", "error_of"]

TOLERANCE = {
    torch.float64: 1e-12,
    torch.float32: 3e-6,  # sums of a few thousand terms, each rounded to 6e-8
    # One rounding to 8 bits is 4e-3. The interpreter truncates instead: 8e-3. A second rounding is
    # inside a product.
    torch.bfloat16: 1.2e-2,
    torch.float16: 1.5e-3,  # the same with 11 bits
}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def error_of(found: Tensor, want: Tensor) -> float:
    """The largest error. Shapes must agree; NaN and Inf have an infinite error."""
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
    """Assert a tolerance. The error of zeros is 1, so a tolerance that zeros would pass is a bug.

    `roundings`: consecutive roundings to 16 bits.
    """
    dtype = dtype or found.dtype
    limit = TOLERANCE[dtype] * (roundings if dtype.itemsize == 2 else 1)
    error = error_of(found, want)
    assert error <= limit, f"error {error:.3g}, allowed {limit:.3g}"
