"""`gate_report.json`: what the parity gate found, for people and their tools.

It lies beside `config.pbtxt`, decides no answer, and no digest covers it: it names the versions of
the machine that exported. It has no time, so two exports on one machine write the same bytes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from pidep.artifacts.left_out import LeftOut
from pidep.artifacts.names import GATE_REPORT
from pidep.artifacts.parity import Parity, ParitySlice
from pidep.artifacts.record import Record, read_record, write_record
from pidep.errors import ServingError

__all__ = ["GateReport", "GatedExpert"]


class GatedExpert(Record):
    """One expert that passed the gate."""

    digest: str
    labels: tuple[str, ...]
    """Empty where rows bring candidates."""
    parity: Parity
    """All figures, the worst row's logits and the slices among them."""
    worst_text: str | None = None
    """The text of the worst row; only where the entry keeps rows."""
    worst_answers: tuple[str, str] | None = None
    """What PyTorch and the graph answer to the worst row; None where rows bring candidates."""
    worst_slice: ParitySlice | None = None
    """None where the rows are of one kind."""


class GateReport(Record):
    """The gate of one entry."""

    schema_version: Literal[1] = Field(default=1, alias="schema")
    entry: str
    """Digest of the entry that passed."""
    backbone: str
    """Digest of the backbone."""
    recipe: str
    precision: str
    max_abs: float
    """The recipe's bound of a logit's error."""
    argmax_flips: int
    metric_drop: float
    other_texts: float = 0.0
    """Share of an encoder-decoder's generated texts that may differ."""
    versions: dict[str, str]
    """Package to its version, where the gate ran."""
    experts: dict[str, GatedExpert]
    left_out: dict[str, LeftOut] | None = None
    """Experts that a bank's gate refused, and that models of their own serve."""

    @classmethod
    def read(cls, entry: Path) -> GateReport:
        """The report of a model's folder.

        Raises:
            ServingError: missing or malformed.
        """
        path, make = entry / GATE_REPORT, "make the entry again with pidep export"
        try:
            return read_record(path, cls, fault="malformed", remedy=make)
        except FileNotFoundError as error:
            raise ServingError(f"{path}: no such file; {make}") from error

    def write(self, entry: Path) -> None:
        """Write the report into a model's folder."""
        write_record(entry / GATE_REPORT, self)
