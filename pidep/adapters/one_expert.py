"""One LoRA for all rows of a batch, as tensors by site: what an adapter graph has as inputs."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from pidep.adapters import row_ops
from pidep.adapters.bank_rows import BankRows

__all__ = ["OneExpert"]


class OneExpert(BankRows):
    """The factors of one expert, in place of those of each row's own.

    Args:
        a: site to A `[in, r]`.
        b: site to B `[r, out]`, with the scaling.
    """

    def __init__(self, a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> None:
        # Not BankRows': there are no slots to gather from.
        self._a, self._b = a, b

    def own(self, kind: str, factor: str, site: str) -> Tensor:
        """B `[r, out]`."""
        return self._b[site]

    def hidden(self, kind: str, factor: str, site: str, x: Tensor) -> Tensor:
        """x A, `[B, T, r]`."""
        return row_ops.matmul(x, self._a[site])
