"""Rows of data files: CSV, TSV, JSON and Parquet, also compressed, by a glob or in a folder."""

from __future__ import annotations

import bz2
import glob
import gzip
import io
import json
import lzma
import re
import zlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pidep.errors import TaskError
from pidep.inputs.places import Place, Placed, RowError
from pidep.tasks.delimited import (
    delimited_rows,
    find_delimiter,
    find_quoting,
    unique_columns,
)

__all__ = ["TextFormat", "data_files", "file_kind", "parquet_file", "read_rows", "require_encoding"]

_OPEN: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_FORMATS = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
}
_KNOWN = ".csv, .tsv, .json, .jsonl or .parquet"
# The line above the header by which Excel tells itself the delimiter.
_EXCEL_DELIMITER = re.compile(r"sep=([,;\t|])\r?\n?")
# The mark of UTF-32 begins with that of UTF-16, so it is looked for first.
_MARKS = (
    (b"\xff\xfe\x00\x00", "utf-32"),
    (b"\x00\x00\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)


@dataclass(frozen=True)
class TextFormat:
    """How text files are written, where a file does not tell."""

    encoding: str | None = None
    """Without it, UTF-8, or what a byte order mark says."""
    delimiter: str | None = None
    """Without it, the one under which the header names the columns that are asked for."""
    quoting: Literal["auto", "csv", "none"] = "auto"


def file_kind(path: Path) -> str:
    """The suffix of a data file without that of its compression: `.csv` for `a.csv.gz`."""
    inner = path.with_suffix("") if path.suffix.lower() in _OPEN else path
    return inner.suffix.lower()


def data_files(path: Path) -> list[Path]:
    """The files of a path: the file itself, those that a glob matches, or those of a folder.

    A folder gives its data files of one format, sorted by name; hidden files are ignored.

    Raises:
        TaskError: there are none, or the folder mixes formats.
    """
    if path.is_dir():
        return _inside(path)
    if path.exists() or not glob.has_magic(str(path)):
        return [path]
    found = sorted(Path(name) for name in glob.glob(str(path), recursive=True))
    files = [one for one in found if one.is_file()]
    if not files:
        raise TaskError(f"{path}: no file matches; check the pattern")
    return files


def _inside(folder: Path) -> list[Path]:
    def hidden(path: Path) -> bool:
        # Spark and others write _SUCCESS and _metadata beside the data.
        return any(part.startswith((".", "_")) for part in path.relative_to(folder).parts)

    files = [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not hidden(path) and file_kind(path) in _FORMATS
    ]
    formats = sorted({_FORMATS[file_kind(path)] for path in files})
    if len(formats) > 1:
        raise TaskError(
            f"{folder}: expected data files of one format, found {' and '.join(formats)}; name the "
            "files, for example *.parquet"
        )
    if not files:
        raise TaskError(f"{folder}: no data files in it; expected {_KNOWN}")
    return files


def read_rows(path: Path, form: TextFormat = TextFormat(), wanted: Collection[str] = ()) -> Placed:
    """The rows of a data file, few in memory at a time, with their places.

    A row that cannot be read is its `RowError`; the next rows follow.

    Args:
        wanted: columns that the caller needs; they tell which delimiter a CSV has.

    Raises:
        TaskError: the file cannot be read as a whole; the message names it.
    """
    if not path.is_file():
        raise TaskError(f"{path}: no such data file")
    form_of_file = _FORMATS.get(file_kind(path))
    if form_of_file is None:
        raise TaskError(
            f"{path}: expected {_KNOWN}, found {file_kind(path) or 'no suffix'!r}; save it in one "
            "of these formats"
        )
    try:
        if form_of_file == "parquet":
            yield from _parquet(path)
        elif form_of_file in ("csv", "tsv"):
            yield from _delimited(path, form, wanted, tab=form_of_file == "tsv")
        elif form_of_file == "json" and _holds_list(path, form):
            yield from _json_list(path, form)
        else:
            yield from _json_lines(path, form)
    except UnicodeDecodeError as error:
        raise TaskError(_undecodable(path, error)) from error
    except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
        raise TaskError(f"{path}: not readable ({' '.join(str(error).split())})") from error


def require_encoding(name: str) -> str:
    """The name, if Python knows this encoding of texts.

    Raises:
        ValueError: it does not.
    """
    try:
        "a".encode(name)  # with an empty text, Python would not look the encoding up
    except (LookupError, ValueError):  # ValueError: a name with a null character
        raise ValueError(
            f"encoding {name!r}: expected one that Python knows, such as utf-8 or cp1252"
        ) from None
    return name


def _lines(path: Path, form: TextFormat) -> Iterator[str]:
    """Lines with their ends: the csv module needs those inside of quoted fields."""
    opened = _OPEN.get(path.suffix.lower(), open)
    with opened(path, "rb") as binary:
        encoding = form.encoding or _marked(binary.read(4))
        binary.seek(0)
        if encoding.lower().replace("_", "-") in ("utf-8", "utf8"):
            encoding = "utf-8-sig"  # reads files with and without a byte order mark
        with io.TextIOWrapper(binary, encoding=encoding, newline="") as lines:
            yield from lines


def _marked(start: bytes) -> str:
    """The encoding that a byte order mark tells; UTF-8 without one."""
    return next((encoding for mark, encoding in _MARKS if start.startswith(mark)), "utf-8")


def _undecodable(path: Path, error: UnicodeDecodeError) -> str:
    """The message for bytes that are no text. Finds the line: decoders read ahead of it."""
    if error.encoding.replace("_", "-") not in ("utf-8", "utf-8-sig"):
        return f"{path}: not readable as {error.encoding} ({error.reason}); check `encoding`"
    place, found = str(path), error.object[error.start]
    opened = _OPEN.get(path.suffix.lower(), open)
    with opened(path, "rb") as binary:
        for number, line in enumerate(binary, 1):
            try:
                line.decode()
            except UnicodeDecodeError as wrong:
                place, found = f"{path}, line {number}", line[wrong.start]
                break
    return (
        f"{place}: not readable as UTF-8 (byte 0x{found:02x}); save the file as UTF-8, or set "
        "`encoding=cp1252` (in a task file, under data) for Windows-1252"
    )


def _delimited(path: Path, form: TextFormat, wanted: Collection[str], *, tab: bool) -> Placed:
    said = _EXCEL_DELIMITER.fullmatch(next(_lines(path, form), ""))

    def lines() -> Iterator[str]:
        found = _lines(path, form)
        if said:
            next(found)
            yield "\n"  # a blank line in its place keeps the numbers of the lines
        yield from found

    header = next((line for line in lines() if line.strip()), "")
    delimiter = form.delimiter or (said and said[1])
    delimiter = delimiter or ("\t" if tab else find_delimiter(header, wanted))

    quoting = form.quoting
    if quoting == "auto":
        quoting = find_quoting(lines, str(path), delimiter=delimiter)
    yield from delimited_rows(lines, str(path), delimiter=delimiter, quoting=quoting)


def _holds_list(path: Path, form: TextFormat) -> bool:
    """Whether a .json file begins with a list. Many .json files hold JSON lines."""
    first = next((line for line in _lines(path, form) if line.strip()), "")
    return first.lstrip().startswith("[")


def _json_list(path: Path, form: TextFormat) -> Placed:
    # As a whole: a list can be one long line, and its objects can go over several.
    try:
        rows = json.loads("".join(_lines(path, form)), object_pairs_hook=_object)
    except RecursionError:
        raise TaskError(f"{path}: not readable (JSON that is nested too deeply)") from None
    yield from ((Place(str(path), number), row) for number, row in enumerate(rows, 1))


def _json_lines(path: Path, form: TextFormat) -> Placed:
    number = 0
    for line, text in enumerate(_lines(path, form), 1):
        if not text.strip():
            continue
        number += 1
        place = Place(str(path), number, line)
        try:
            row = json.loads(text.rstrip(), object_pairs_hook=_object)
        except (ValueError, RecursionError) as error:
            row = RowError(place, f"not a JSON object ({_reason(error)}); mend the line")
        yield place, row


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg}, column {error.colno}"
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"key {twice!r} is there twice")
    return found


def _parquet(path: Path) -> Placed:
    number = 0
    with parquet_file(path) as file:
        # In batches: a file may be larger than memory.
        for batch in file.iter_batches():
            for row in batch.to_pylist():
                number += 1
                yield Place(str(path), number), row


def parquet_file(path: Path) -> Any:
    """An open `pyarrow.parquet.ParquetFile` whose columns have different names.

    Raises:
        TaskError: pyarrow is missing, the file cannot be read, or two columns have one name.
    """
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise TaskError(
            f"{path}: Parquet needs a working pyarrow ({error}); pip install 'pidep[tune]'"
        ) from error
    try:
        file = pyarrow.parquet.ParquetFile(path)
    except (OSError, ValueError) as error:
        raise TaskError(f"{path}: not readable ({' '.join(str(error).split())})") from error
    unique_columns(file.schema_arrow.names, str(path))
    return file
