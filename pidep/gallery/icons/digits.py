"""scikit-learn's 1,797 real handwritten digits (8 × 8, 16 shades) as images.

They are the test part of UCI's Optical Recognition of Handwritten Digits (Alpaydin and Kaynak,
1998; CC BY 4.0), by other writers than its training part. The writers are not recorded, so a split
is by image, with equal images on one side.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Digit", "digits"]


@dataclass(frozen=True, eq=False)
class Digit:
    """One digit, black ink on white."""

    number: int
    """Row in scikit-learn's table."""
    pixels: npt.NDArray[np.uint8]
    """`[8, 8]`; preprocessing scales it up."""
    label: int


def digits() -> list[Digit]:
    """All digits in scikit-learn's order.

    Needs scikit-learn (`pip install 'pidep[tune]'`).
    """
    from sklearn.datasets import load_digits

    table = load_digits()
    shades = np.rint(255.0 - table.images * (255.0 / 16.0)).astype(np.uint8)
    return [
        Digit(number, pixels, int(label))
        for number, (pixels, label) in enumerate(zip(shades, table.target, strict=True))
    ]
