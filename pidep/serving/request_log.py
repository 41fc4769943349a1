"""Refused and failed requests in the server's log, by the ids that their clients gave them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from pidep.artifacts.names import PROBE_ID
from pidep.errors import PidepError
from pidep.serving.metrics import error_code

__all__ = ["log_refused", "request_id_of"]

_ID, _MESSAGE = 128, 500
"""Most characters that are logged of an id and of a message: clients choose both."""
_log = logging.getLogger(__name__)


def request_id_of(request: Any) -> str:
    """The id that the client gave a request of Triton Server; empty without one."""
    try:
        found = str(request.request_id())
    except Exception:  # over HTTP an id need not be UTF-8
        return ""
    return _printable(found[:_ID])


def _printable(text: str) -> str:
    # A control character could end the line, or move a terminal's cursor.
    return "".join(one if one.isprintable() else "\ufffd" for one in text)


def log_refused(request_id: str, errors: Sequence[PidepError], *, rows: int = 0) -> None:
    """Log why a request, or some rows of it, got no answer.

    Args:
        errors: the first is logged.
        rows: of the request, where its other rows are answered; 0 where the whole request failed.
    """
    code = error_code(errors[0])
    # A probe asks whether the model answers. A refusal is an answer, and it comes every second.
    if request_id == PROBE_ID and code != "INTERNAL":
        return
    what = f"request {request_id}" if request_id else "a request without an id"
    some = f" {len(errors)} of {rows} rows," if rows else ""
    _log.log(
        logging.ERROR if code == "INTERNAL" else logging.WARNING,
        "%s:%s %s: %s",
        what,
        some,
        code,
        _printable(" ".join(str(errors[0]).split())[:_MESSAGE]),
        extra={
            "request_id": request_id or None,
            "code": code,
            "rows": len(errors) if rows else None,
        },
    )
