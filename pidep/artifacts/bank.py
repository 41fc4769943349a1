"""`bank.json`: what one graph with many experts as inputs needs to be run."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from pidep.artifacts.engine import EngineRecord
from pidep.artifacts.left_out import LeftOut
from pidep.artifacts.names import BANK_RECORD
from pidep.artifacts.parity import Parity
from pidep.artifacts.record import EntryRecord, Record
from pidep.artifacts.sequence import SequenceRecord
from pidep.artifacts.towers import TowersRecord
from pidep.artifacts.vision import VisionRecord
from pidep.errors import ServingError

__all__ = ["BankRecord", "GroupRecord"]


class GroupRecord(Record):
    """One graph input that holds one factor of many sites, `[E, S, size, width]`."""

    input: str
    """Name of the graph's input."""
    factor: str
    """Which factor of the kind."""
    width: int = Field(ge=1)
    sites: tuple[str, ...]
    size: int = Field(default=0, ge=0)
    """Rows that an expert has room for at a site; 0 stands for the bank's `max_rank`."""
    kind: str = "lora"
    """Kind of the experts that it holds."""

    @model_serializer(mode="wrap")
    def _without_lora(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave `kind` and `size` out for LoRA: older servers refuse the keys."""
        values: dict[str, Any] = handler(self)
        if self.kind == "lora":
            del values["kind"], values["size"]
        return values


class BankRecord(EntryRecord):
    """A bank, without its graph and its experts."""

    file_name: ClassVar[str] = BANK_RECORD
    form: ClassVar[str] = "bank"
    # Where the store and the backbone lie: a moved repository answers the same. As `parity`, what
    # was left out has figures of the machine that exported.
    no_answer = EntryRecord.no_answer | {"backbone", "expert_store", "left_out"}

    schema_version: Literal[1] = Field(default=1, alias="schema")
    backbone: str = ""
    backbone_digest: str
    also_fitting: tuple[str, ...] = ()
    """Digests of other backbones whose experts run on this one unchanged."""
    graph_digest: str
    quantised_products: int | None = None
    """Matrix products of the graph in int8; None in fp32."""
    engine: EngineRecord | None = None
    """None where ONNX Runtime runs the graph."""
    hidden_size: int = 0
    """D, width of an embedding; 0 in the oldest files, which do not say."""
    max_positions: int = 512
    """Tokens a candidate's text is cut to, as in training: the most that the backbone can read."""
    max_rank: int = Field(ge=1)
    """Rank of the LoRAs that it has room for; 1 where it holds none."""
    expert_store: str
    """Path of the store, relative to the version folder, so that a repository can be moved."""
    groups: tuple[GroupRecord, ...]
    parity: dict[str, Parity] = Field(default_factory=dict)
    """Expert name to the figures of the gate; only experts that this export was given."""
    left_out: dict[str, LeftOut] | None = None
    """Expert name to the model that serves it in fp32; None where nothing was left out."""
    vision: VisionRecord | None = None
    """None where the graph takes no visual tokens."""
    sequence: SequenceRecord | None = None
    """The two graphs of an encoder-decoder; `graph_digest` is its decoder's."""
    towers: TowersRecord | None = None
    """None where the bank has one graph."""

    @property
    def reads_images(self) -> bool:
        """Whether a row may have an image."""
        return self.vision is not None or self.towers is not None

    @property
    def backbones(self) -> tuple[str, ...]:
        """Digests of the backbones whose experts this bank holds; its own comes first."""
        return (self.backbone_digest, *self.also_fitting)

    def store(self, version_folder: Path) -> Path:
        """The expert store's folder.

        Raises:
            ServingError: its path leads nowhere.
        """
        place = version_folder / self.expert_store
        try:
            # Resolved: the path goes up through the repository, which may be a link itself.
            return place.resolve()
        except (OSError, RuntimeError, ValueError) as error:  # links that lead to themselves
            raise ServingError(
                f"{place}: no expert store ({error}); export the bank again"
            ) from error
