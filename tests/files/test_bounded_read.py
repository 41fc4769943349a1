"""Bounded reading: anything but a plain file of limited size is an error of one line, at once."""

from __future__ import annotations

import json
import os
import socket
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from pidep.errors import ExpertError
from pidep.files import read_file, read_json, read_tensors, tensor_bytes

LIMIT = 1 << 20


def loop(path: Path) -> None:
    path.symlink_to(path)


def listen(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(path))


def sparse(path: Path) -> None:
    """A terabyte that takes no room on the disk."""
    path.touch()
    os.truncate(path, 1 << 40)


ODD: list[tuple[Callable[[Path], None], str]] = [
    (os.mkfifo, "expected a plain file, found a FIFO; remove it"),
    (Path.mkdir, "expected a plain file, found a folder"),
    (lambda path: path.symlink_to("/dev/zero"), "expected a plain file, found a device"),
    (listen, "not readable"),
    (loop, "not readable"),
    (sparse, "has 1099511627776 bytes, expected at most"),
]


@pytest.mark.parametrize(
    "read", [lambda path: read_file(path, limit=LIMIT), read_json, read_tensors]
)
@pytest.mark.parametrize(("make", "message"), ODD)
def test_what_is_no_plain_file_is_refused_at_once(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make: Callable[[Path], None],
    message: str,
    read: Callable[[Path], object],
) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    path = Path("file.json")
    make(path)
    started = time.monotonic()
    with pytest.raises(ExpertError, match=rf"^file\.json: {message}"):
        read(path)
    assert time.monotonic() - started < 5


def test_a_path_that_no_system_has_is_refused() -> None:
    with pytest.raises(ExpertError, match="null"):
        read_file(Path("a\0b"), limit=LIMIT)


def test_an_absent_file_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_file(tmp_path / "file", limit=LIMIT)
    with pytest.raises(ExpertError, match=r"file: no such file; expected an expert folder"):
        read_json(tmp_path / "file")


@pytest.mark.parametrize("size", [0, 1, LIMIT])
def test_a_plain_file_is_read_up_to_its_limit(tmp_path: Path, size: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(size))
    assert read_file(path, limit=LIMIT) == bytes(size)
    (tmp_path / "link").symlink_to(path)
    assert read_file(tmp_path / "link", limit=LIMIT) == bytes(size)
    with open(path, "ab") as stream:
        stream.write(bytes(LIMIT))
    if size:
        with pytest.raises(ExpertError, match="expected at most"):
            read_file(path, limit=LIMIT)


@pytest.mark.skipif(not Path("/proc/self/maps").is_file(), reason="has no /proc")
def test_a_file_that_says_it_is_empty_and_is_not_is_refused() -> None:
    """A kernel's pseudo-file can be endless, and says that it has no bytes."""
    with pytest.raises(ExpertError, match="changed while it was read"):
        read_file(Path("/proc/self/maps"), limit=LIMIT)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b'{"a": ' + b"9" * 5001 + b"}", "has more than 64 bits"),
        (b'{"a": 1' + b"0" * 400 + b"}", "has more than 64 bits"),
        (b'{"a": -9223372036854775809}', "has more than 64 bits"),
        (b'{"a": ["\\uD83D"]}', "can't encode character"),
        (b'{"a\\udc80": 1}', "can't encode character"),
        (b'{"a": "\xff"}', "can't decode"),
        (b'{"b": {"a": 1, "c": 2, "a": 3}}', "key 'a' is there twice"),
        (b"", "Expecting value"),
        (b"[]", "expected a JSON object, found list"),
    ],
)
def test_a_text_that_is_not_safe_json_is_one_line(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "file.json"
    path.write_bytes(content)
    with pytest.raises(ExpertError, match=message) as raised:
        read_json(path)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 500


def test_json_is_read_as_it_is_written(tmp_path: Path) -> None:
    value = {"a": [1, 2.5, -1e308, None, 2**63 - 1, -(2**63), "é\u2028😀", {"b": {}}]}
    (tmp_path / "file.json").write_text(json.dumps(value))
    assert read_json(tmp_path / "file.json") == value


def test_tensors_are_read_through_a_link(tmp_path: Path) -> None:
    """A hub's cache stores its snapshots as links."""
    (tmp_path / "blob").write_bytes(tensor_bytes({}))
    (tmp_path / "file.safetensors").symlink_to("blob")
    assert read_tensors(tmp_path / "file.safetensors") == {}


@pytest.mark.parametrize(
    ("first", "message"),
    [
        (b"", "header claims 0 bytes"),
        (b"\xff" * 8, "header claims 18446744073709551615 bytes"),
        ((5 << 20).to_bytes(8, "little"), "header claims 5242880 bytes"),
    ],
)
def test_a_large_file_without_a_header_is_refused_before_it_is_read(
    tmp_path: Path, first: bytes, message: str
) -> None:
    path = tmp_path / "file.safetensors"
    path.write_bytes(first)
    os.truncate(path, (1 << 31) - 1)  # a hole: no room on the disk, two gigabytes of memory
    tracemalloc.start()
    try:
        with pytest.raises(ExpertError, match=message):
            read_tensors(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
