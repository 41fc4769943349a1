"""The base of every record: frozen fields, no unknown keys, errors of one line."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from pidep.errors import ExpertError, ServingError
from pidep.files.atomic_write import write_json
from pidep.files.bounded_read import MAX_JSON_BYTES, parse_json, read_file

__all__ = ["EntryRecord", "Record", "read_record", "write_record"]


R = TypeVar("R", bound="Record")
E = TypeVar("E", bound="EntryRecord")


class Record(BaseModel):
    """Base of everything that is written as JSON and read back."""

    # Frozen: a record describes files that are not changed after they were written.
    # An unknown key is an error: a setting that is not understood must not be dropped silently.
    model_config = ConfigDict(
        extra="forbid", frozen=True, populate_by_name=True, allow_inf_nan=False
    )


class EntryRecord(Record):
    """Base of the record in an entry's version folder: `bank.json` or `merged.json`."""

    file_name: ClassVar[str]
    form: ClassVar[str]
    """Form of the export that writes it."""

    @classmethod
    def read(cls: type[E], version_folder: Path) -> E:
        """The record of a version folder.

        Raises:
            ServingError: missing or malformed.
        """
        path = version_folder / cls.file_name
        make = f"pidep export --form {cls.form}"
        try:
            return read_record(path, cls, fault="malformed", remedy=f"make it again with {make}")
        except FileNotFoundError as error:
            raise ServingError(f"{path}: no such file; make it with {make}") from error

    def write(self, version_folder: Path) -> None:
        """Write the record into a version folder."""
        write_record(version_folder / self.file_name, self)


def read_record(path: Path, model: type[R], *, fault: str, remedy: str) -> R:
    """A record from its file.

    Args:
        fault: the message's words for a file that is not as it should be, such as `malformed`.
        remedy: what to do about it.

    Raises:
        FileNotFoundError: no such file; the caller knows what that means.
        ServingError: not a plain file, not JSON, or a key is unknown, missing or out of range.
    """
    try:
        return model.model_validate(parse_json(read_file(path, limit=MAX_JSON_BYTES)))
    # pydantic's own text has several lines and a link; a message here is one line.
    except ValidationError as error:
        raise ServingError(f"{path}: {fault} ({_first(error)}); {remedy}") from error
    except ExpertError as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise ServingError(f"{path}: {fault} ({reason}); {remedy}") from error
    except ValueError as error:
        raise ServingError(f"{path}: {fault} ({error}); {remedy}") from error


def write_record(path: Path, record: Record) -> None:
    """Write a record whole or not at all. Keys are in the order of the fields, None is left out."""
    write_json(path, record.model_dump(mode="json", by_alias=True, exclude_none=True))


def _first(error: ValidationError) -> str:
    """The first fault on one line: `groups.0.width: Field required`."""
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"])) or "content"
    found = "" if first["type"] == "missing" else f", found {str(first['input'])[:60]!r}"
    return " ".join(f"{where}: {first['msg']}{found}".split())
