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
    """The version that was refused. No swap brings it into the bank."""
    precision: str
    """The bank's: `int8` or `fp16`."""
    reason: str
    """Which figure is beyond which bound."""
    parity: Parity | None = None
    """The figures in the bank; None where a number was not finite."""

    def refusal(self, name: str) -> str:
        """What a client is told who asks the bank for the expert.

        Args:
            name: the expert's.
        """
        return (
            f"expert {name!r} is not in this bank: the gate refused it in {self.precision} "
            f"({self.reason}); ask model {self.model!r}, which serves it in fp32"
        )
