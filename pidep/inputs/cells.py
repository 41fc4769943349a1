"""Values of columns that become texts, in training and in serving. No torch."""

from __future__ import annotations

import datetime
import decimal
import difflib
import math
import unicodedata
from collections.abc import Mapping
from typing import Any

from pidep.inputs.places import Place, RowError

__all__ = ["filled", "is_blank", "is_missing", "plain_text", "whole_text"]

# bool is an int. These have one written form; bytes, lists and objects do not.
_SCALARS = (
    str,
    int,
    float,
    decimal.Decimal,
    datetime.date,
    datetime.time,
    datetime.timedelta,
)


def filled(row: Mapping[str, Any], column: str, place: Place | str) -> Any:
    """The value of a column.

    Raises:
        RowError: there is no such column, or its value is missing (null or NaN).
    """
    if column not in row:
        raise RowError(place, f"no column {column!r}; {_there(row, column)}", "column")
    value = row[column]
    if is_missing(value):
        raise RowError(
            place, f"column {column!r} is empty (null); fill it or remove the row", "column"
        )
    return value


def _there(row: Mapping[str, Any], column: str) -> str:
    # Quoted: otherwise a space or an invisible character in a name cannot be seen.
    names = [str(name) for name in row]
    plain = {
        unicodedata.normalize("NFKC", name).strip().strip("\ufeff").casefold(): name
        for name in names
    }
    close = difflib.get_close_matches(column.casefold(), plain, n=1)
    near = f" (did you mean {plain[close[0]]!r}?)" if close else ""
    return f"the row has {', '.join(map(repr, names)) or 'none'}{near}"


def is_missing(value: Any) -> bool:
    """Whether a value is None, or the NaN that pandas writes for a missing value."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def plain_text(row: Mapping[str, Any], column: str, place: Place | str) -> Any:
    """The value of a column that a template may write into a text.

    Raises:
        RowError: it is missing, has no written form, or is no valid text.
    """
    value = filled(row, column, place)
    if not isinstance(value, _SCALARS):
        raise RowError(
            place,
            f"column {column!r}: expected a text or a number, found {type(value).__name__} "
            f"({str(value)[:40]!r}); convert it before",
            "type",
        )
    return whole_text(value, f"column {column!r}", place) if isinstance(value, str) else value


def whole_text(text: str, what: str, place: Place | str) -> str:
    """The text, if it can be written as UTF-8.

    Raises:
        RowError: it holds half of a character, as a text that was cut inside an emoji does.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = text[error.start].encode("unicode_escape").decode()
        raise RowError(
            place, f"{what} holds half of a character ({half}); remove it", "type"
        ) from None
    return text


def is_blank(text: str) -> bool:
    """Whether a text shows nothing: white space, control and invisible characters only."""
    return not any(
        not character.isspace() and unicodedata.category(character) not in ("Cc", "Cf")
        for character in text
    )
