"""What a label may be called in the data."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection
from typing import Any

__all__ = ["known_name", "name_of", "spellings"]

_YES_NO = {
    True: ("true", "True", "TRUE", "yes", "Yes", "YES", "1"),
    False: ("false", "False", "FALSE", "no", "No", "NO", "0"),
}

_ANY_CASE = (
    *(names[:3] for names in _YES_NO.values()),
    *(names[3:6] for names in _YES_NO.values()),
)
"""Words that programs write in capitals, too. A text is not one of the other pair: `yes` is a label
of its own beside `true`."""


def spellings(value: Any) -> tuple[str, ...]:
    """The names that a label in the data may have in the task file, the likeliest first.

    Programs write one label in several ways: true as `True` or 1, and 1 as 1.0 in a column of
    pandas that had a gap.
    """
    if isinstance(value, bool):
        return _YES_NO[value]
    if isinstance(value, int):
        return str(value), f"{value}.0"
    if isinstance(value, float):
        return (str(int(value)), str(value)) if value.is_integer() else (str(value),)
    text = str(value).strip()
    if not text.isascii():
        # macOS writes é in file names as e and an accent; a task file has it as one character.
        forms = (unicodedata.normalize(form, text) for form in ("NFC", "NFD"))
        return tuple(dict.fromkeys((text, *forms)))
    for names in _ANY_CASE:
        if text.casefold() == names[0]:
            return text, *names
    whole, _, zeros = text.partition(".")
    if whole.lstrip("-").isdecimal() and not zeros.strip("0"):
        return text, whole, f"{whole}.0"
    return (text,)


def name_of(value: Any) -> str:
    """A label's own name: `true`, `1` for 1.0, or its text."""
    return str(value).strip() if isinstance(value, str) else spellings(value)[0]


def known_name(value: Any, names: Collection[str]) -> str | None:
    """The name among `names` that a value of the data means; None where it means none."""
    if isinstance(value, str) and value in names:
        return value
    return next((one for one in spellings(value) if one in names), None)
