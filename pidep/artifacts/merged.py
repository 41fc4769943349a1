"""`merged.json`: what a graph with one expert folded into it needs to be run."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from pidep.artifacts.engine import EngineRecord
from pidep.artifacts.names import MERGED_RECORD, VERSION
from pidep.artifacts.parity import Parity
from pidep.artifacts.record import EntryRecord
from pidep.artifacts.sequence import SequenceRecord
from pidep.artifacts.template import TemplateField
from pidep.artifacts.towers import TowersRecord
from pidep.artifacts.vision import VisionRecord
from pidep.errors import ServingError

__all__ = ["MergedRecord"]


class MergedRecord(EntryRecord):
    """A merged model, without its graph."""

    file_name: ClassVar[str] = MERGED_RECORD
    form: ClassVar[str] = "merged"

    schema_version: Literal[1] = Field(default=1, alias="schema")
    expert: str
    digest: str
    """The expert's digest; returned with every answer."""
    labels: tuple[str, ...]
    max_length: int = Field(ge=1)
    """Tokens a text is cut to."""
    template: TemplateField | None = None
    """How the task makes a text of a row's columns; None in files of older releases."""
    backbone_digest: str
    graph_digest: str
    graph_model: str | None = Field(
        default=None, pattern=r"\A[A-Za-z0-9][A-Za-z0-9._-]*-graph-[0-9a-f]{12}\z"
    )
    """The model that runs the graph, in a backend of Triton Server; None where the entry has it."""
    quantised_products: int | None = None
    """Matrix products of the graph in int8; None in fp32."""
    engine: EngineRecord | None = None
    """None where ONNX Runtime runs the graph."""
    parity: Parity | None = None
    vision: VisionRecord | None = None
    """None where the graph takes no visual tokens."""
    sequence: SequenceRecord | None = None
    """The two graphs of an encoder-decoder; `graph_digest` is its decoder's."""
    label_texts: tuple[str, ...] | None = None
    """What an encoder-decoder scores for each label."""
    max_answer_length: int | None = None
    """Tokens of an encoder-decoder's free answer."""
    label_bias: tuple[float, ...] | None = None
    """Added to an encoder-decoder's scores of the labels; other graphs have it inside."""
    towers: TowersRecord | None = None
    """None where the model has one graph."""

    @classmethod
    def graph_model_of(cls, entry: Path) -> str | None:
        """The model that the front in a model's folder asks.

        None where the model has its graph itself, and where there is no merged model that can be
        read.
        """
        try:
            return cls.read(entry / VERSION).graph_model
        except ServingError:
            return None

    @property
    def reads_images(self) -> bool:
        """Whether a row may have an image."""
        return self.vision is not None or self.towers is not None
