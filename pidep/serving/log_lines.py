"""pidep's log lines: a text each, or a JSON object each."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Literal, TypeAlias, get_args

from pidep.errors import UsageError

__all__ = [
    "LOG_FORMAT_VARIABLE",
    "Bounded",
    "JsonLines",
    "LogFormat",
    "TextLines",
    "format_from_environment",
    "json_line",
    "log_model",
]

LogFormat: TypeAlias = Literal["text", "json"]
LOG_FORMAT_VARIABLE = "PIDEP_LOG_FORMAT"
"""Environment variable of the format, which a model's process reads."""
_FIELDS = ("model", "expert", "version", "revision", "request_id", "code", "rows", "suppressed")
"""What a line may say apart from its message: `extra` of the call that logs it."""
_BY_CLIENTS = (
    "pidep.serving.request_log",
    "pidep.serving.batcher",
    "pidep.serving.late_answers",
    "pidep.runtime.isolate",
)
"""Loggers of what a client's request can cause."""
_BURST = 20
_A_SECOND = 1.0


def json_line(**fields: Any) -> str:
    """A line of JSON. It is ASCII, so no text in it can end the line or fail to be written."""
    return json.dumps(fields, default=str)


class JsonLines(logging.Formatter):
    """A record as a JSON object: `time` (ISO 8601, UTC), `level`, `logger`, `message`, fields."""

    def __init__(self, **always: str) -> None:
        """Fields that every line gets, such as `model`."""
        super().__init__()
        self._always = always

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        when = datetime.fromtimestamp(record.created, timezone.utc)
        own = {name: vars(record)[name] for name in _FIELDS if vars(record).get(name) is not None}
        if record.exc_info:
            own["exception"] = self.formatException(record.exc_info)
        return json_line(
            time=when.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            level=record.levelname.lower(),
            logger=record.name,
            message=record.getMessage(),
            **{**self._always, **own},
        )


class TextLines(logging.Formatter):
    """A record as a text, and how many like it were left out before it."""

    def format(self, record: logging.LogRecord) -> str:
        """The text; a traceback follows on lines of its own."""
        left_out = vars(record).get("suppressed")
        before = f"({left_out} lines like the next one were left out) " if left_out else ""
        return f"pidep: {before}{super().format(record)}"


@dataclass
class _Bucket:
    left: float
    filled_at: float
    left_out: int = 0


class Bounded(logging.Filter):
    """Few lines a second of what clients cause: a flood of bad requests must not fill a disk.

    20 lines of a kind pass at once, and then one a second. The next line that passes says how many
    were left out (`suppressed`). Lines about pidep's own work always pass.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._lock = threading.Lock()
        self._buckets: dict[tuple[str, int, str | None], _Bucket] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the line passes."""
        if record.name not in _BY_CLIENTS:
            return True
        with self._lock:
            now = self._clock()
            # By its place in the code and the error's code: a client can choose a message, and
            # kinds must stay few.
            kind = (record.name, record.lineno, vars(record).get("code"))
            bucket = self._buckets.setdefault(kind, _Bucket(_BURST, now))
            bucket.left = min(bucket.left + _A_SECOND * (now - bucket.filled_at), _BURST)
            bucket.filled_at = now
            if bucket.left < 1:
                bucket.left_out += 1
                return False
            bucket.left -= 1
            if bucket.left_out:
                record.suppressed, bucket.left_out = bucket.left_out, 0
            return True


def format_from_environment() -> LogFormat:
    """The format that a model's process logs in.

    Raises:
        UsageError: the variable has another value.
    """
    found = os.environ.get(LOG_FORMAT_VARIABLE) or "text"
    for one in get_args(LogFormat):
        if found == one:
            return one  # type: ignore[no-any-return]
    raise UsageError(f"{LOG_FORMAT_VARIABLE}: expected text or json, found {found!r}")


def log_model(model: str) -> None:
    """Log what a model's process does, on standard error: Triton Server passes it on to its log.

    Args:
        model: its name, a field of each line of JSON.

    Raises:
        UsageError: the environment names another format.
    """
    is_json = format_from_environment() == "json"
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines(model=model) if is_json else TextLines())
    handler.addFilter(Bounded())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
