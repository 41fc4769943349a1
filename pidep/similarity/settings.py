"""The settings of `pidep graph`. No torch and no numpy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator, model_validator

from pidep.settings import Settings, Shown, ends_in

__all__ = ["GraphSettings"]

NEIGHBOURS = Shown("Neighbours")
OUTPUT = Shown("Output")


class GraphSettings(Settings):
    """A pool, and how its task graph is shown."""

    pool: Annotated[Path, Shown("Neighbours", argument=True)]
    """Folder of experts with task embeddings."""
    explain: Annotated[str | None, NEIGHBOURS] = None
    """Name of a task. Lists the sites where this task and its neighbours agree."""
    learn: Annotated[bool, NEIGHBOURS] = False
    """Measure which experts of the pool help which of its tasks at few shots, and keep it with the
    pool, for `pidep tune --neighbours-by ranker`."""
    learn_pairs: Annotated[int, NEIGHBOURS] = Field(default=60, ge=8)
    """Pairs of a target and a helper that `learn` measures."""
    learn_shots: Annotated[int, NEIGHBOURS] = Field(default=8, ge=1)
    """Rows of each label that a target of `learn` has."""
    seed: Annotated[int, NEIGHBOURS] = Field(default=0, ge=0, le=2**32 - 1)
    """Seed of the pairs, the shots and the batches of `learn`."""
    top_k: Annotated[int | None, NEIGHBOURS] = Field(default=None, ge=1)
    """Neighbours shown of each task. Without it, all pairs up to 50 tasks, else 3."""
    png: Annotated[Path | None, OUTPUT] = None
    """Draw the graph as a picture."""
    graphml: Annotated[Path | None, OUTPUT] = None
    """Write the graph as GraphML."""

    @field_validator("png")
    @classmethod
    def _is_png(cls, path: Path | None) -> Path | None:
        return ends_in(path, ".png")

    @field_validator("graphml")
    @classmethod
    def _is_graphml(cls, path: Path | None) -> Path | None:
        return ends_in(path, ".graphml", ".xml")

    @model_validator(mode="after")
    def _one_view(self) -> GraphSettings:
        if self.learn and (self.explain is not None or self.png or self.graphml):
            raise ValueError(
                "`learn` measures; run `explain`, `png` and `graphml` without it, afterwards"
            )
        if self.explain is not None and (self.png or self.graphml):
            raise ValueError(
                "`explain` is about one task; `png` and `graphml` draw the whole graph, "
                "run them without it"
            )
        return self
