"""Files of an entry, read as its record describes them."""

from __future__ import annotations

import logging
from pathlib import Path

from pidep.artifacts.names import DATA_SUFFIX, TOKENIZER
from pidep.artifacts.record import EntryRecord
from pidep.errors import ExpertError, ServingError
from pidep.files.bounded_read import MAX_JSON_BYTES, MAX_TENSOR_BYTES, read_file
from pidep.files.digest import bytes_digest, file_digest

__all__ = ["entry_file", "require_files", "tokenizer_json"]

_log = logging.getLogger(__name__)


def entry_file(path: Path, digest: str | None, *, limit: int = MAX_TENSOR_BYTES) -> bytes:
    """The bytes of a file of an entry.

    Args:
        digest: the recorded one; None in entries that do not record it.

    Raises:
        ServingError: it is absent, no plain file, too large, or not the recorded one.
    """
    try:
        data = read_file(path, limit=limit)
    except FileNotFoundError as error:
        raise ServingError(f"{path}: no such file; export the model again") from error
    except ExpertError as error:
        raise ServingError(f"{error}, or export the model again") from error
    if digest is not None and (found := bytes_digest(data)) != digest:
        raise ServingError(f"{path}: digest {found}, expected {digest}; export the model again")
    return data


def require_files(version_folder: Path, record: EntryRecord) -> None:
    """Refuse an entry in which a file is not the recorded one.

    Raises:
        ServingError: the message names the file.
    """
    if record.files is None:
        _log.warning("%s: has no entry digest; export the model again to get one", version_folder)
        return
    for name, digest in record.files.items():
        if Path(name).name != name:
            raise ServingError(f"{version_folder}: {name[:60]!r} is no file of the entry")
        if name.endswith(DATA_SUFFIX):
            _require_data(version_folder / name, digest)
        else:
            entry_file(version_folder / name, digest)


def _require_data(path: Path, digest: str) -> None:
    """Refuse weights beside a graph that are not the recorded ones, without a copy in memory."""
    if not path.is_file():
        raise ServingError(f"{path}: no such file; export the model again")
    try:
        found = file_digest(path)
    except OSError as error:
        raise ServingError(f"{path}: not readable ({error.strerror}); check the disk") from error
    if found != digest:
        raise ServingError(f"{path}: digest {found}, expected {digest}; export the model again")


def tokenizer_json(version_folder: Path, digest: str | None) -> str:
    """The entry's tokenizer; arguments and errors as `entry_file`."""
    path = version_folder / TOKENIZER
    # From the bytes that were checked: the file could change in between.
    data = entry_file(path, digest, limit=MAX_JSON_BYTES)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ServingError(f"{path}: not readable ({error}); export the model again") from error
