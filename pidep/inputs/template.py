"""A row's columns and the text that a template makes of them, in training and in serving. No torch.

A template is text with column names in braces, such as `{subject}: {body}`. Two braces stand for
one. Nothing else is understood: `str.format` would read attributes of a value (`{a.__class__}`)
and make texts of any length (`{a:>99999999}`), and templates come from files of other people.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from string import Formatter
from typing import Any, Literal

from pidep.errors import TaskError, did_you_mean
from pidep.inputs.cells import is_blank, plain_text
from pidep.inputs.places import Place, RowError

__all__ = ["Template", "columns_of", "fill", "read_columns"]


MOST_CHARACTERS = 1 << 20
"""Characters of a text that is made for a request."""


def columns_of(template: str) -> tuple[str, ...]:
    """The columns that a template names, each once, in order.

    Raises:
        ValueError: a brace without its partner, or more than a plain name between two braces.

    >>> columns_of("{subject}: {body}")
    ('subject', 'body')
    """
    return tuple(dict.fromkeys(name for _, name in _parts(template) if name is not None))


def fill(template: str, texts: Mapping[str, str]) -> str:
    """The template with the texts in the places of their columns.

    >>> fill("{subject}: {body}", {"subject": "Hello", "body": "{not read}"})
    'Hello: {not read}'
    """
    parts = _parts(template)
    return "".join(literal + ("" if name is None else texts[name]) for literal, name in parts)


@lru_cache(maxsize=256)  # Parsed once, and not for every row.
def _parts(template: str) -> tuple[tuple[str, str | None], ...]:
    """Each piece of plain text, with the column that follows it."""
    found = []
    for literal, name, spec, conversion in Formatter().parse(template):
        if name is not None and (not name.strip() or spec or conversion or set(name) & set(".[]")):
            raise ValueError(
                f"template {template[:80]!r}: expected plain {{column}} between braces; "
                "rename a column whose name has '.', ':', '!' or brackets"
            )
        found.append((literal, name))
    return tuple(found)


def read_columns(data: bytes, where: str) -> dict[str, Any]:
    """The columns of a row from a JSON object, as a request carries them.

    Raises:
        TaskError: not a JSON object, or a column that is there twice; begins with `where`.

    >>> read_columns(b'{"subject": "Hello"}', "row 1")
    {'subject': 'Hello'}
    """
    try:
        found = json.loads(data, object_pairs_hook=lambda pairs: _unique(pairs, where))
    except (ValueError, RecursionError) as error:
        raise TaskError(
            f'{where}: columns: expected a JSON object such as {{"subject": "Hello"}}, found '
            f"{ascii(data)[1:60]}"
        ) from error
    if not isinstance(found, dict):
        raise TaskError(f"{where}: columns: expected a JSON object, found {type(found).__name__}")
    return found


def _unique(pairs: list[tuple[str, Any]], where: str) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in found if names.count(name) > 1)
        raise TaskError(f"{where}: column {twice!a} is there twice; leave one out")
    return found


@dataclass(frozen=True)
class Template:
    """How a task makes a row's text, image and candidates of its columns."""

    text: str = "{text}"
    """Template of the text. Empty where a row is an image alone."""
    image: str | None = None
    """Column of the image."""
    candidates: str | None = None
    """Column of the row's own candidates."""
    candidates_are: Literal["text", "image"] = "text"

    def __post_init__(self) -> None:
        """Refuse an invalid text template.

        Raises:
            ValueError: as `columns_of`.
        """
        columns_of(self.text)

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """The columns of the text."""
        return columns_of(self.text)

    def render(self, row: Mapping[str, Any], where: Place | str) -> str:
        """The row's text; empty only where there is an image column.

        Other columns of the row are ignored.

        Raises:
            RowError: a column is missing, its value has no text, or the text is empty; begins with
                `where`.
        """
        values = {name: plain_text(row, name, where) for name in self.columns}
        try:
            texts = {name: str(value) for name, value in values.items()}
        except ValueError as error:  # Python writes no number of more than 4,300 digits
            raise RowError(where, f"a number in it is too long ({error})", "type") from error
        # The words of a template alone are no text of the row: "subject: body:" says nothing.
        if self.image is None and all(map(is_blank, texts.values())):
            raise RowError(where, "the text is empty; remove the row", "empty")
        return fill(self.text, texts).strip()

    def asked(self, row: Mapping[str, Any], where: Place | str) -> str:
        """The text of a row that a client sends: its columns are exactly the template's.

        Raises:
            TaskError: a column that the template does not name, or as `render`.
        """
        for name in row:
            if name not in self.columns:
                expected = ", ".join(map(repr, self.columns)) or "none"
                do = {self.image: "send it as an image", self.candidates: "send it as rows"}
                raise TaskError(
                    f"{where}: unknown column {ascii(name)[:60]}{did_you_mean(name, self.columns)};"
                    f" {do.get(name, f'the template has {expected}')}"
                )
        self._require_small(row, where)
        return self.render(row, where)

    @classmethod
    def of(cls, values: Any) -> Template:
        """A template from its JSON.

        Raises:
            ValueError: an unknown key, a value of another type, or no template.
        """
        if isinstance(values, Template):
            return values
        if not isinstance(values, Mapping) or not isinstance(values.get("text"), str):
            raise ValueError("expected an object with a text")
        known = {"text": str, "image": str, "candidates": str, "candidates_are": str}
        for key, value in values.items():
            if not isinstance(value, known.get(key, type(None))):
                raise ValueError(f"key {key!a} is unknown or no text")
        if values.get("candidates_are", "text") not in ("text", "image"):
            raise ValueError("candidates_are: expected text or image")
        return cls(**values)

    def _require_small(self, row: Mapping[str, Any], where: Place | str) -> None:
        """Refuse a text far longer than its columns: a template may name one column often."""
        longest = max((len(str(row.get(name, ""))) for name in self.columns), default=0)
        if len(self.text) + longest * self.text.count("{") > MOST_CHARACTERS:
            raise RowError(
                where,
                f"its text would have more than {MOST_CHARACTERS} characters; send shorter columns",
            )

    def to_json(self) -> dict[str, Any]:
        """For the expert's record and digest; keys whose value is the default are left out."""
        values = {
            "text": self.text,
            "image": self.image,
            "candidates": self.candidates,
            "candidates_are": self.candidates_are,
        }
        plain = Template()
        return {k: v for k, v in values.items() if k == "text" or v != getattr(plain, k)}
