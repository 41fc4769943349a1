"""`mixture.json`: a mixture of experts by reference to its parts.

{"schema": 1, "digest": "sha256:…", "head": {as expert.json, without sites},
 "parts": ["sha256:…", …], "alphas": {"encoder.layer.0.attention.self.query": [0.7, 0.3], …}}
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from pidep.artifacts.expert_record import ExpertRecord
from pidep.artifacts.names import MIXTURE_RECORD
from pidep.artifacts.record import Record, read_record, write_record
from pidep.errors import ExpertError, ServingError

__all__ = ["MixtureRecord"]

Digest = Annotated[str, StringConstraints(pattern=r"\Asha256:[0-9a-f]{64}\z")]


class MixtureRecord(Record):
    """One mixture, without tensors."""

    schema_version: Literal[1] = Field(default=1, alias="schema")
    digest: Digest
    """Over everything that decides an answer: the head, the parts and their shares."""
    head: dict[str, Any]
    """Name, labels, template and lengths, as `expert.json` has them; it names no site."""
    parts: tuple[Digest, ...] = Field(min_length=1)
    """The digests of the K parts, whose folders lie elsewhere."""
    alphas: dict[str, tuple[float, ...]]
    """Site to the share α of each part, K numbers of sum 1."""

    @classmethod
    def read(cls, folder: Path) -> MixtureRecord:
        """The record of a folder.

        Raises:
            ExpertError: missing or malformed.
        """
        path = folder / MIXTURE_RECORD
        try:
            return read_record(path, cls, fault="malformed", remedy="copy the mixture again")
        except FileNotFoundError as error:
            raise ExpertError(f"{path}: no such file; copy the mixture again") from error
        except ServingError as error:
            raise ExpertError(str(error)) from error

    def head_record(self, folder: Path) -> ExpertRecord:
        """The head's record; raises as `ExpertRecord.read`."""
        return ExpertRecord.from_json(self.head, folder / MIXTURE_RECORD)

    def write(self, folder: Path) -> None:
        """Write the record into a folder."""
        write_record(folder / MIXTURE_RECORD, self)
