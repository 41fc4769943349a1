"""Rows as the tokenizer takes them: each has its text, or the error that refuses it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pidep.errors import PidepError, TaskError
from pidep.inputs.cells import is_blank
from pidep.inputs.row import Input, Row, as_row
from pidep.inputs.template import Template
from pidep.runtime.isolate import as_row_error

__all__ = ["ready_rows"]


def ready_rows(
    rows: Sequence[Input], templates: Sequence[Template | None]
) -> list[Row | PidepError]:
    """Each row with its text, made by the template where the row is given as columns.

    A row that training would refuse is an error of that row alone: no text and no image, a column
    that is missing, or one that the template does not name.

    Args:
        templates: for each row, the template of the expert that answers it; None without one.
    """
    found: list[Row | PidepError] = []
    for number, (given, template) in enumerate(zip(rows, templates, strict=True), 1):
        row = as_row(given)
        row = row if row.where else replace(row, where=f"row {number}")
        try:
            found.append(_ready(row, template))
        except TaskError as error:
            found.append(as_row_error(error))
    return found


def _ready(row: Row, template: Template | None) -> Row:
    if row.columns is None:
        # A tokenizer without special tokens makes no token of it, and the graph would fail.
        if row.image is None and is_blank(row.text):
            raise TaskError(
                f"{row.where}: expected a text, an image or both, found neither; give one of them"
            )
        return row
    if row.text:
        raise TaskError(f"{row.where}: has a text and columns; give one of them")
    if template is None:
        raise TaskError(
            f"{row.where}: is given as columns, and what answers it has no template to make a text "
            "of them; give a text, or an expert that this pidep has tuned"
        )
    text = template.asked(row.columns, row.where)
    if template.image is not None and row.image is None:
        raise TaskError(f"{row.where}: column {template.image!r}: no image; send it as an image")
    return replace(row, text=text, columns=None)
