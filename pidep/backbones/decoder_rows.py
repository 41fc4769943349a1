"""Rows and candidates of an encoder-decoder: checked, listed for every row, and grouped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pidep.backbones.backbone import Candidates
from pidep.errors import BackboneError, UsageError
from pidep.inputs.row import Row, as_row

__all__ = ["candidates_by_row", "check_row", "groups_of_one_length"]


def check_row(row: Row, number: int, *, backbone: str, images: str) -> None:
    """Refuse a row that the backbone cannot read.

    Raises:
        BackboneError: the row lacks an image that the backbone needs, or holds nothing.
    """
    if row.image is None and images == "always":
        raise BackboneError(
            f"row {number}: has no image, and backbone {backbone!r} needs one in every row"
        )
    if row.image is None and not row.text.strip():
        raise BackboneError(
            f"row {number}: expected a text{' or an image' if images == 'maybe' else ''}, found "
            "none; remove the row"
        )


def candidates_by_row(candidates: Candidates, num_rows: int) -> list[list[str]]:
    """Every row's candidate texts."""
    if candidates and all(isinstance(each, str) for each in candidates):
        rows: list[Sequence[Any]] = [candidates] * num_rows
    elif len(candidates) == num_rows:
        rows = [each if not isinstance(each, str) else [each] for each in candidates]
    else:
        raise UsageError(
            f"candidates: expected texts, or a list of texts for each of {num_rows} rows, found "
            f"{len(candidates)} lists"
        )
    for number, own in enumerate(rows, 1):
        if not own:
            raise UsageError(f"row {number}: has no candidates; give at least one")
        for each in own:
            if isinstance(each, Row) and each.image is not None:
                raise BackboneError(
                    f"row {number}: a candidate is an image, and an encoder-decoder scores texts; "
                    "use `backbone=pidep-mini`"
                )
    return [[as_row(each).text for each in own] for own in rows]


def groups_of_one_length(prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Groups of rows whose beginnings have one length.

    A batch must start decoding at one position.
    """
    groups: dict[int, list[int]] = {}
    for place, prompt in enumerate(prompts):
        groups.setdefault(len(prompt), []).append(place)
    return list(groups.values())
