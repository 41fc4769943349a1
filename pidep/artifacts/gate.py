"""`gate.json`: real rows and PyTorch's answers to them, so that a live server can be checked.

It is written on request only, because rows may be private. It lies beside `config.pbtxt` and
decides no answer. Images are PNG in base64, of the pixels that PyTorch has seen.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from pidep.artifacts.names import GATE
from pidep.artifacts.record import Record, read_record, write_record
from pidep.errors import ServingError

__all__ = ["GateRecord", "GateRow", "GateSample"]


class GateRow(Record):
    """A row as a client sends it."""

    text: str = ""
    image: str | None = None
    """PNG in base64."""
    candidates: tuple[GateRow, ...] = ()
    """Where the row brings its own."""


class GateSample(Record):
    """What the gate asked of one expert."""

    digest: str
    metric: str
    """The task's metric, such as `accuracy`."""
    labels: tuple[str, ...]
    """None where rows bring candidates."""
    logit_scale: float
    """Factor on a cosine."""
    rows: tuple[GateRow, ...]
    right: tuple[int, ...]
    """The label number of each row: the task's, or PyTorch's answer where the task has none."""
    logits: tuple[tuple[float, ...], ...]
    """PyTorch's, one list a row: of each label, or of each candidate."""
    scores_texts: bool = False
    """Whether the expert is of an encoder-decoder: logits are log-probabilities, and the server
    itself scores candidates."""


class GateRecord(Record):
    """The gate of one entry."""

    schema_version: Literal[1] = Field(default=1, alias="schema")
    recipe: str
    max_abs: float
    """The recipe's bound of a logit's error."""
    argmax_flips: int
    metric_drop: float
    entry: str
    """Digest of the entry that passed."""
    with_expert: bool
    """Whether a request names an expert: a bank's does."""
    experts: dict[str, GateSample]

    @classmethod
    def read(cls, entry: Path) -> GateRecord:
        """The record of a model's folder.

        Raises:
            ServingError: missing or malformed.
        """
        path = entry / GATE
        make = "make the entry again with pidep export"
        try:
            return read_record(path, cls, fault="malformed", remedy=make)
        except FileNotFoundError as error:
            raise ServingError(
                f"{path}: no such file; give a model's folder, such as model_repo/pidep_bank, that "
                "was exported with `keep_rows`"
            ) from error

    def write(self, entry: Path) -> None:
        """Write the record into a model's folder."""
        write_record(entry / GATE, self)
