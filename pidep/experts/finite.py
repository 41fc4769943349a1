"""Numbers and arrays that fp32 holds. A graph computes in fp32, whatever a file has."""

from __future__ import annotations

import numbers
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["LARGEST", "as_finite_fp32", "is_finite_number", "magnitude"]

LARGEST = float(np.finfo(np.float32).max)


def is_finite_number(value: Any) -> bool:
    """Whether the value is a number that fp32 holds."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return False
    try:
        return abs(float(value)) <= LARGEST  # NaN compares as False
    except OverflowError:  # an integer of 400 digits
        return False


def as_finite_fp32(array: npt.NDArray[Any]) -> npt.NDArray[np.float32] | None:
    """The array as fp32; None where it is no array of floats, or not finite after the cast."""
    if not isinstance(array, np.ndarray) or array.dtype.kind != "f":
        return None
    if array.dtype == np.float32:
        return array if magnitude(array) <= LARGEST else None
    # A float64 of 1e39 is finite and becomes infinity; numpy only warns.
    with np.errstate(over="ignore"):
        cast = array.astype(np.float32)
    return cast if magnitude(cast) <= LARGEST else None


def magnitude(array: npt.NDArray[np.float32]) -> float:
    """The largest absolute value; 0 of no values, NaN where one is NaN. It makes no copy."""
    if not array.size:
        return 0.0
    # A NaN is the maximum and the minimum of whatever it stands in.
    return max(float(array.max()), -float(array.min()))
