"""Passes the lines of a running server's log on, each as a JSON object."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from pidep.serving.log_lines import json_line

__all__ = ["LogTail", "as_json", "is_error", "message_of"]

_POLL_S = 0.1
_CHUNK = 65536
"""Bytes that are read at once; a longer line is cut there."""
_STOP_WITHIN_S = 2.0
_TRITON = re.compile(r"(?P<time>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ) (?P<level>[IWEFV]) (?P<text>.*)")
"""A line of Triton Server with `--log-format=ISO8601`."""
_LEVELS = {"I": "info", "W": "warning", "E": "error", "F": "critical", "V": "debug"}


def as_json(line: str) -> str:
    """A line of the log as JSON: pidep's own lines are, and Triton Server's get the same keys."""
    if _own(line) is not None:
        return line
    found = _TRITON.fullmatch(line)
    if found is None:  # a part of a table, or a line of another library
        now = datetime.now(timezone.utc).isoformat(timespec="seconds").replace("+00:00", "Z")
        return json_line(time=now, level="info", logger="triton", message=line)
    return json_line(
        time=found["time"], level=_LEVELS[found["level"]], logger="triton", message=found["text"]
    )


def is_error(line: str) -> bool:
    """Whether a line of the log, in any format, tells of an error."""
    own = _own(line)
    if own is not None:
        return own["level"] in ("error", "critical")
    triton = _TRITON.fullmatch(line)
    marked = triton["level"] in "EF" if triton else line.startswith("E")
    return marked or "Error" in line or "failed" in line


def message_of(line: str) -> str:
    """What a line of the log says, in any format."""
    own = _own(line)
    return line.strip() if own is None else str(own["message"])


def _own(line: str) -> dict[str, Any] | None:
    """What a line of `JsonLines` says; None for a line of anything else."""
    if not line.startswith('{"time": '):
        return None
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    # Another library may log JSON, too.
    is_own = isinstance(found, dict) and {"level", "message"} <= found.keys()
    return found if is_own else None


class LogTail:
    """Follows a file from its start, on a thread, until `stop`."""

    def __init__(self, path: Path, write: Callable[[str], None]) -> None:
        """The thread starts at once.

        Args:
            write: gets each line as JSON, without its end.
        """
        # Opened here: whoever stops the server also removes the file.
        self._file = open(path, "rb")  # noqa: SIM115
        self._write = write
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="pidep-log", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Pass on what is there, then end; idempotent. A blocked reader is not waited for."""
        self._stop.set()
        self._thread.join(timeout=_STOP_WITHIN_S)

    def _follow(self) -> None:
        rest = b""
        with self._file:
            while True:
                # Asked first: what was written before the stop is read after it.
                is_last = self._stop.is_set()
                while data := self._file.read(_CHUNK):
                    *lines, rest = (rest + data).split(b"\n")
                    if len(rest) > _CHUNK:
                        lines, rest = [*lines, rest], b""
                    for line in lines:
                        self._pass_on(line)
                if is_last:
                    self._pass_on(rest)
                    return
                self._stop.wait(_POLL_S)

    def _pass_on(self, line: bytes) -> None:
        text = line.decode("utf-8", "replace").rstrip()
        if text:
            self._write(as_json(text))
