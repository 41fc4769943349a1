"""`expert.json`: facts about an expert that PEFT's files cannot hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pidep.artifacts.names import BIAS_SCHEMA, SCHEMA, TEMPLATE_SCHEMA, TEXT_SCHEMA
from pidep.artifacts.template import TemplateField
from pidep.errors import ExpertError
from pidep.files.bounded_read import read_json

__all__ = ["ExpertRecord"]


class ExpertRecord(BaseModel):
    """One expert, without its tensors."""

    # Not strict: JSON has lists where the fields are tuples.
    model_config = ConfigDict(
        extra="forbid", frozen=True, populate_by_name=True, allow_inf_nan=False
    )

    schema_version: int = Field(alias="schema")
    name: str
    kind: str
    digest: str
    """`sha256:…` over everything that decides an answer."""
    backbone: str
    backbone_digest: str
    sites: tuple[str, ...]
    scaling: float | None = None
    """s. PEFT keeps alpha instead, and s · r / r is not always s again."""
    labels: tuple[str, ...]
    label_texts: tuple[str, ...]
    logit_scale: float
    max_length: int
    metrics: dict[str, Any] = Field(default_factory=dict)
    provenance: dict[str, Any] = Field(default_factory=dict)
    max_answer_length: int | None = None
    """Tokens of a free answer, for an encoder-decoder. Not in schema 1."""
    template: TemplateField | None = None
    """How the task makes a text of a row's columns. From schema 3 on."""
    scores_texts: bool = False
    """Whether the expert is an encoder-decoder's. From schema 3 on; schema 2 means yes, 1 means no.
    """
    label_bias: tuple[float, ...] = ()
    """Added to the logit of each label. Schema 4 only."""

    @property
    def embeds(self) -> bool:
        """Whether the expert's backbone embeds, so that its labels have embeddings."""
        return self.schema_version != TEXT_SCHEMA and not self.scores_texts

    @classmethod
    def read(cls, path: Path) -> ExpertRecord:
        """The record of an expert folder.

        Raises:
            ExpertError: missing, malformed, or of a schema that this pidep does not read.
        """
        return cls.from_json(read_json(path), path)

    @classmethod
    def from_json(cls, values: Any, where: Path | str) -> ExpertRecord:
        """The record of parsed JSON; raises as `read`, naming `where`."""
        if not isinstance(values, dict):
            raise ExpertError(f"{where}: expected an object, found {type(values).__name__}")
        # Checked first: a file of another schema would fail at its first unknown key, which
        # explains nothing.
        schema = values.get("schema")
        if schema not in (SCHEMA, TEXT_SCHEMA, TEMPLATE_SCHEMA, BIAS_SCHEMA):
            raise ExpertError(
                f"{where}: schema {schema!r}, this pidep reads schemas {SCHEMA} to "
                f"{BIAS_SCHEMA}; use the pidep that wrote it, or a newer one"
            )
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            entry = ".".join(map(str, first["loc"]))
            raise ExpertError(
                f"{where}: missing or malformed entry {entry!r} ({first['msg']}); "
                "write it again with pidep tune or pidep import"
            ) from error

    def to_json(self) -> dict[str, Any]:
        """The content of the file, keys in the order of the fields."""
        values = self.model_dump(by_alias=True)
        # Older schemas are written as older releases wrote them: those still read the files.
        if self.schema_version != BIAS_SCHEMA:
            del values["label_bias"]
        if self.schema_version < TEMPLATE_SCHEMA:
            del values["template"], values["scores_texts"]
        if self.schema_version == SCHEMA:
            del values["max_answer_length"]
        return values

    def write(self, path: Path) -> None:
        """Write the file."""
        path.write_text(
            json.dumps(self.to_json(), indent=2, ensure_ascii=False, allow_nan=False) + "\n",
            encoding="utf-8",
        )
