"""CSV and TSV: records with the lines where they start.

Quotation marks either enclose fields, as in files that spreadsheets, pandas and `csv` write, or are
plain text, as in many TSV files. The wrong reading merges rows without a sign, so `find_quoting`
surveys the file first.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from pidep.errors import TaskError
from pidep.inputs.places import Place, RowError

__all__ = [
    "AmbiguousQuoting",
    "Quoting",
    "delimited_rows",
    "find_delimiter",
    "find_quoting",
    "unique_columns",
]


class AmbiguousQuoting(RowError):
    """A file's quotation marks can be read in two ways, which give different rows."""


Quoting = Literal["csv", "none"]
"""`csv`: quotation marks enclose fields; `none`: they are text."""
Lines = Callable[[], Iterable[str]]
"""Opens a file's lines, with their line ends."""
_DELIMITERS = ",;\t|"
# The limit is one for the whole process, and 131,072 by default: shorter than many documents.
# The largest value that fits a C long on every platform:
csv.field_size_limit(max(csv.field_size_limit(), 2**31 - 1))


def find_delimiter(header: str, wanted: Collection[str]) -> str:
    """The delimiter under which a header line names most of the wanted columns."""
    names = {name.strip().casefold() for name in wanted}

    def fit(delimiter: str) -> tuple[int, int]:
        fields = next(csv.reader([header], delimiter=delimiter), [])
        return len(names & {field.strip().casefold() for field in fields}), len(fields)

    return max(_DELIMITERS, key=fit)


def delimited_rows(
    lines: Lines, source: str, *, delimiter: str, quoting: Quoting
) -> Iterator[tuple[Place, dict[str, str] | RowError]]:
    """Rows by column name; a record that does not fit the header is its error.

    Raises:
        TaskError: two columns have one name.
    """
    header: list[str] | None = None
    number = 0
    for line, record in _without_empty_end(_records(lines(), delimiter, quoted=quoting == "csv")):
        if not record:
            continue  # a blank line
        if header is None:
            if isinstance(record, csv.Error):
                raise TaskError(f"{source}, line {line}: the header is not readable ({record})")
            header = unique_columns(record, source)
        else:
            number += 1
            place = Place(source, number, line)
            yield place, _row(header, record, place)


def unique_columns(names: Iterable[str], source: str) -> list[str]:
    """The names, if each is there once; columns without a name do not count.

    Raises:
        TaskError: two columns have one name, so that one would hide the other.
    """
    found = list(names)
    for name in found:
        if name.strip() and found.count(name) > 1:
            raise TaskError(
                f"{source}: column {name!r} is there twice; rename or remove one of the two"
            )
    return found


def _row(
    header: list[str], record: list[str] | csv.Error, place: Place
) -> dict[str, str] | RowError:
    if isinstance(record, csv.Error):
        return RowError(place, f"its quotation marks do not match ({record}); mend the row")
    if not _fits(record, len(header)):
        return RowError(
            place,
            f"expected {len(header)} columns ({', '.join(map(repr, header))}), found "
            f"{len(record)}; mend the row",
        )
    return {name: value for name, value in zip(header, record, strict=False) if name.strip()}


def _fits(record: list[str], columns: int) -> bool:
    """Whether a record has the header's columns. Spreadsheets add empty ones at the end."""
    return len(record) >= columns and not any(record[columns:])


def _without_empty_end(
    records: Iterable[tuple[int, list[str] | csv.Error]],
) -> Iterator[tuple[int, list[str] | csv.Error]]:
    """The records without those at the end that are delimiters alone.

    Spreadsheets write them for cells that were cleared. Between other rows, an empty record stays a
    row, so that answers keep their places.
    """
    waiting: list[tuple[int, list[str] | csv.Error]] = []
    for line, record in records:
        # In a file of one column, an empty field is an empty text.
        if isinstance(record, list) and len(record) != 1 and not any(record):
            waiting.append((line, record))
            continue
        yield from waiting
        waiting.clear()
        yield line, record


def _records(
    lines: Iterable[str], delimiter: str, *, quoted: bool
) -> Iterator[tuple[int, list[str] | csv.Error]]:
    """Records with the line where each starts. A malformed record is its error."""
    source, before = iter(lines), 0
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    while True:
        # Strict: otherwise text behind a closing mark is glued to the field without a word.
        reader = csv.reader(source, delimiter=delimiter, quoting=quoting, strict=quoted)
        start = before + 1
        try:
            for record in reader:
                yield start, record
                start = before + reader.line_num + 1
            return
        except csv.Error as error:
            yield start, error
            before += reader.line_num  # a new reader goes on behind the malformed record


@dataclass
class _Survey:
    """Both readings of a file, counted."""

    malformed_csv: int = 0
    """Records that do not fit the header when quotation marks enclose fields."""
    malformed_plain: int = 0
    """Lines that do not fit the header when quotation marks are text."""
    bare: bool = False
    """Whether a mark stands inside a field that is not enclosed; writers enclose such fields."""
    doubled: bool = False
    """Whether an enclosed field holds marks, doubled as writers do it."""
    merged: tuple[int, int, int] | None = None
    """Row, first and last line of the first record whose lines are whole rows, too."""
    widths: tuple[int, int] = field(default=(0, 0))
    """Columns of the header in the two readings."""


def find_quoting(lines: Lines, source: str, *, delimiter: str) -> Quoting:
    """Whether quotation marks enclose fields in this file.

    Raises:
        AmbiguousQuoting: both readings fit, and they give different rows.
    """
    if not any('"' in line for line in lines()):
        return "none"
    found = _survey(lines, delimiter)
    csv_fits, plain_fits = found.malformed_csv == 0, found.malformed_plain == 0
    if found.widths[0] == 1 and csv_fits:
        return "csv"  # a line without delimiters always fits a header of one column
    if found.malformed_csv >= found.malformed_plain and (found.bare or not csv_fits):
        return "none"
    if found.merged and (found.bare or (plain_fits and not found.doubled)):
        row, first, last = found.merged
        raise AmbiguousQuoting(
            Place(source, row, first),
            f"its quotation marks enclose lines {first} to {last}, and each of these lines is a "
            "row of its own, too; set `quoting=none` (in a task file, under data) if the marks "
            "belong to the texts, or `quoting=csv` if they enclose fields",
        )
    return "csv"


def _survey(lines: Lines, delimiter: str) -> _Survey:
    found, seen, row = _Survey(), list[str](), -1

    def kept() -> Iterator[str]:
        for line in lines():
            seen.append(line)
            yield line

    for start, record in _records(kept(), delimiter, quoted=True):
        raw = [line for line in seen if line.strip("\r\n")]
        seen.clear()
        if not raw:
            continue
        row += 1
        counts = [line.count(delimiter) + 1 for line in raw]
        if row == 0:
            found.widths = (len(record) if isinstance(record, list) else 0, counts[0])
        _count(found, raw, counts, record)
        whole = isinstance(record, list) and all(one == found.widths[1] for one in counts)
        if whole and row > 0 and len(raw) > 1 and found.merged is None:
            found.merged = (row, start, start + len(raw) - 1)
    return found


def _count(
    found: _Survey, raw: list[str], counts: list[int], record: list[str] | csv.Error
) -> None:
    columns, plain_columns = found.widths
    found.malformed_plain += sum(one != plain_columns for one in counts)
    if isinstance(record, csv.Error):
        found.malformed_csv += 1
        return
    found.malformed_csv += not _fits(record, columns)
    # An enclosed field doubles its marks and adds two.
    needed = sum(2 * value.count('"') + 2 for value in record if '"' in value)
    enclosed = sum(line.count('"') for line in raw) >= needed
    found.bare |= not enclosed
    found.doubled |= enclosed and needed > 0
