"""A measured cell of a comparison, typed. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["CellResult", "MethodResult"]


@dataclass(frozen=True)
class MethodResult:
    """The score of one method in one cell, with its cost."""

    score: float
    """The task's metric on the test rows, in [0, 1]."""
    seconds: float
    cpu_seconds: float
    test_seconds: float
    settings: Mapping[str, Any]
    details: Mapping[str, Any]
    """Facts that differ by method, such as steps or α."""
    decision: Mapping[str, Any] | None = None
    """The decision of π, with its reason."""


@dataclass(frozen=True)
class CellResult:
    """Every requested method on one target task, number of shots and seed."""

    kind: str
    task: str
    shots: int | None
    """None for all rows."""
    seed: int
    metric: str
    train_rows: int
    validation_rows: int
    test_rows: int
    helpers: tuple[str, ...]
    """Tasks of the helpers, the most similar first."""
    own_digest: str
    """Digest of the target's own expert."""
    methods: Mapping[str, MethodResult]
    record: Mapping[str, Any]
    """The content of the cell's file."""

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> CellResult:
        """The cell of a file's content.

        Raises:
            KeyError, TypeError: an entry is missing or malformed.
        """
        return cls(
            kind=record["kind"],
            task=record["task"],
            shots=record["shots"],
            seed=record["seed"],
            metric=record["metric"],
            train_rows=record["train_rows"],
            validation_rows=record["validation_rows"],
            test_rows=record["test_rows"],
            helpers=tuple(helper["task"] for helper in record["helpers"]),
            own_digest=record["own"]["digest"],
            methods={name: MethodResult(**found) for name, found in record["methods"].items()},
            record=record,
        )
