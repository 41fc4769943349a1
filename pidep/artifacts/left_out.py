"""What a bank says about an expert that its gate refused, and that another model serves."""

from __future__ import annotations

from pidep.artifacts.parity import Parity
from pidep.artifacts.record import Record

__all__ = ["LeftOut"]


class LeftOut(Record):
    """An expert that a bank's precision is too low for."""

    model: str
    """Name in Triton Server of the merged model that serves the expert in fp32."""
    digest: str
    """The version that was refused."""
    precision: str
    """In which it was refused: `int8` or `fp16`."""
    earlier: bool = False
    """Whether a bank of another precision, since replaced, refused it. This one may hold it."""
    reason: str
    """Which figure is beyond which bound."""
    parity: Parity | None = None
    """The figures in the bank; None where a number was not finite."""

    def refusal(self, name: str) -> str:
        """What a client is told who asks the bank for the expert.

        Args:
            name: the expert's.
        """
        by = f"an earlier bank's gate refused it in {self.precision}"
        if not self.earlier:
            by = f"the gate refused it in {self.precision}"
        return (
            f"expert {name!r} is not in this bank: {by} ({self.reason}); ask model "
            f"{self.model!r}, which serves it in fp32"
        )
