"""pidep's log as JSON on standard error, in the place of its warnings."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from pidep.serving.log_lines import JsonLines

__all__ = ["json_log"]


@contextmanager
def json_log() -> Iterator[Callable[[str], None]]:
    """Inside, each record of pidep is a line of JSON; gives what writes a line that is JSON."""
    logger, handler = logging.getLogger("pidep"), logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    handlers, level = logger.handlers, logger.level

    def write(line: str) -> None:
        handler.acquire()
        try:
            # The reader may have gone. The server goes on.
            with suppress(OSError, ValueError):
                handler.stream.write(f"{line}\n")
                handler.flush()
        finally:
            handler.release()

    logger.handlers = [handler]
    logger.setLevel(logging.INFO)
    try:
        yield write
    finally:
        logger.handlers = handlers
        logger.setLevel(level)
