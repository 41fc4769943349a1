"""`merged.json`: what a graph with one expert folded into it needs to be run."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from pidep.artifacts.names import MERGED_RECORD
from pidep.artifacts.parity import Parity
from pidep.artifacts.record import Record, read_record, write_record
from pidep.artifacts.vision import VisionRecord
from pidep.errors import ServingError

__all__ = ["MergedRecord"]


class MergedRecord(Record):
    """A merged model, without its graph."""

    schema_version: Literal[1] = Field(default=1, alias="schema")
    expert: str
    digest: str
    """The expert's digest; returned with every answer."""
    labels: tuple[str, ...]
    max_length: int = Field(ge=1)
    """Tokens a text is cut to."""
    backbone_digest: str
    graph_digest: str
    parity: Parity | None = None
    vision: VisionRecord | None = None
    """None where the model reads text only."""

    @classmethod
    def read(cls, version_folder: Path) -> MergedRecord:
        """The record of a merged model's version folder.

        Raises:
            ServingError: missing or malformed.
        """
        path = version_folder / MERGED_RECORD
        try:
            return read_record(path, cls, fault="malformed", remedy="export the model again")
        except FileNotFoundError as error:
            message = f"{path}: no such file; make it with pidep export --form merged"
            raise ServingError(message) from error

    def write(self, version_folder: Path) -> None:
        """Write `merged.json` into a version folder."""
        write_record(version_folder / MERGED_RECORD, self)
