"""The base of every record: frozen fields, no unknown keys, errors of one line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from pidep.artifacts.names import (
    DECODER_GRAPH,
    ENCODER_GRAPH,
    ENGINE,
    GRAPH,
    IMAGE_GRAPH,
    NO_BYTECODE,
    VISION_GRAPH,
)
from pidep.errors import ExpertError, ServingError
from pidep.files.atomic_write import write_json
from pidep.files.bounded_read import MAX_JSON_BYTES, parse_json, read_file
from pidep.files.digest import bytes_digest, file_digest

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
    no_answer: ClassVar[frozenset[str]] = frozenset({"entry_digest", "parity"})
    """Keys that decide no answer; the entry digest leaves them out."""

    files: dict[str, str] | None = None
    """File of the version folder to its digest: what the server reads beside the graphs."""
    entry_digest: str | None = None
    """SHA-256 over everything that decides an answer, but for the experts of a bank."""

    @classmethod
    def read(cls: type[E], version_folder: Path) -> E:
        """The record of a version folder.

        Raises:
            ServingError: missing, malformed, or changed since it was written.
        """
        path = version_folder / cls.file_name
        make = f"pidep export --form {cls.form}"
        faults = {"fault": "malformed", "remedy": f"make it again with {make}"}
        try:
            values = _values(path, **faults)
        except FileNotFoundError as error:
            raise ServingError(f"{path}: no such file; make it with {make}") from error
        found = _validated(values, cls, path, **faults)
        # Entries of older releases have neither. One with `files` was sealed: whoever changes a
        # label must not get by when the digest is deleted, too.
        if found.files is None and found.entry_digest is None:
            return found
        # Over the file's own keys: another release may know more of them.
        content = cls._digest_of(values)
        if found.entry_digest != content:
            raise ServingError(
                f"{path}: its content has entry digest {content}, expected "
                f"{found.entry_digest or 'it in the record, found none'}; make it again with {make}"
            )
        return found

    def sealed(self: E, version_folder: Path) -> E:
        """The record with the digests of the folder's files, and the entry digest.

        The entry digest covers the record, which has the digests of the graphs and of all other
        files. So it changes with each of them.
        """
        others = (path for path in sorted(version_folder.iterdir()) if path.is_file())
        # Tools that copy folders leave out what is called __pycache__, and it decides no answer.
        graphs = (GRAPH, VISION_GRAPH, IMAGE_GRAPH, ENCODER_GRAPH, DECODER_GRAPH)
        apart = (self.file_name, *graphs, ENGINE, NO_BYTECODE)
        files = {path.name: file_digest(path) for path in others if path.name not in apart}
        found = self.model_copy(update={"files": files})
        return found.model_copy(update={"entry_digest": found.content_digest()})

    def content_digest(self) -> str:
        """What `entry_digest` must be for this content."""
        return self._digest_of(_as_json(self))

    @classmethod
    def _digest_of(cls, values: Mapping[str, Any]) -> str:
        content = {key: value for key, value in values.items() if key not in cls.no_answer}
        return bytes_digest(json.dumps(content, sort_keys=True).encode())

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
    return _validated(_values(path, fault=fault, remedy=remedy), model, path, fault, remedy)


def _values(path: Path, fault: str, remedy: str) -> Any:
    try:
        return parse_json(read_file(path, limit=MAX_JSON_BYTES))
    except ExpertError as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise ServingError(f"{path}: {fault} ({reason}); {remedy}") from error
    except ValueError as error:
        raise ServingError(f"{path}: {fault} ({error}); {remedy}") from error


def _validated(values: Any, model: type[R], path: Path, fault: str, remedy: str) -> R:
    try:
        return model.model_validate(values)
    # pydantic's own text has several lines and a link; a message here is one line.
    except ValidationError as error:
        raise ServingError(f"{path}: {fault} ({_first(error)}); {remedy}") from error


def write_record(path: Path, record: Record) -> None:
    """Write a record whole or not at all. Keys are in the order of the fields, None is left out."""
    write_json(path, _as_json(record))


def _as_json(record: Record) -> dict[str, Any]:
    return record.model_dump(mode="json", by_alias=True, exclude_none=True)


def _first(error: ValidationError) -> str:
    """The first fault on one line: `groups.0.width: Field required`."""
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"])) or "content"
    found = "" if first["type"] == "missing" else f", found {str(first['input'])[:60]!r}"
    return " ".join(f"{where}: {first['msg']}{found}".split())
