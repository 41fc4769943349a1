"""Where an exported graph is furthest from PyTorch: the worst row, and slices of the rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pidep.artifacts.parity import ParitySlice, SliceKind, WorstRow
from pidep.inputs.row import Input, as_row

__all__ = ["slices_of", "worst_row"]

Logits = npt.NDArray[Any]
_LENGTHS = ((8, "up to 8 words"), (32, "9 to 32 words"), (128, "33 to 128 words"))
_LONGER = "over 128 words"


def worst_row(reference: Logits, exported: Logits, rows: Sequence[Input]) -> WorstRow:
    """The row with the largest error of a logit, both `[N, C]`.

    Without its text: the record is published, and rows may be private.
    """
    errors = _errors(reference, exported)
    at = int(errors.argmax())
    return WorstRow(
        row=at + 1,
        where=as_row(rows[at]).where,
        max_abs=float(errors[at]),
        torch=tuple(map(float, reference[at])),
        exported=tuple(map(float, exported[at])),
    )


def slices_of(
    reference: Logits,
    exported: Logits,
    rows: Sequence[Input],
    labels: Sequence[int],
    names: Sequence[str],
) -> tuple[ParitySlice, ...]:
    """Figures of the rows of each label, length and modality, where there are several.

    Args:
        names: label names; empty where each row has its own candidates.
    """
    kinds: dict[SliceKind, list[str]] = {
        "label": [names[label] for label in labels] if names else [],
        "length": [_length(row) for row in rows],
        "modality": [_modality(row) for row in rows],
    }
    errors, flips = _errors(reference, exported), reference.argmax(1) != exported.argmax(1)
    return tuple(
        ParitySlice(
            by=by,
            name=name,
            rows=len(places),
            max_abs=float(errors[places].max()),
            argmax_flips=int(flips[places].sum()),
        )
        for by, values in kinds.items()
        for name, places in _places(values)
    )


def _places(values: Sequence[str]) -> Iterator[tuple[str, list[int]]]:
    """Each value with its places; none where all are equal: that slice would be all rows."""
    if len(set(values)) > 1:
        for name in sorted(set(values)):
            yield name, [at for at, value in enumerate(values) if value == name]


def _errors(reference: Logits, exported: Logits) -> Logits:  # [N]
    # In fp64, so that the difference itself rounds nothing away.
    found: Logits = np.abs(reference.astype(np.float64) - exported.astype(np.float64)).max(1)
    return found


def _length(row: Input) -> str:
    count = len(as_row(row).text.split())
    return next((name for most, name in _LENGTHS if count <= most), _LONGER)


def _modality(row: Input) -> str:
    whole = as_row(row)
    if whole.image is None:
        return "text"
    return "text and image" if whole.text.strip() else "image"
