"""A batch whose faulty rows fail alone."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from pidep.errors import AnswerError, OverloadError, PidepError
from pidep.runtime.answer import Answer

__all__ = ["as_row_error", "isolated"]

_log = logging.getLogger(__name__)


def isolated(
    run: Callable[[range], Sequence[Answer | PidepError]], rows: range
) -> list[Answer | PidepError]:
    """Every row's answer or error.

    The graph runs whole batches, and an exception of it names no row. So a batch that fails is
    answered again in halves, down to the row that fails alone. A faulty row among B costs about
    2 · log₂ B further runs.

    Args:
        run: answers the rows of these numbers; may raise anything.
        rows: the numbers of the rows.
    """
    try:
        return list(run(rows))
    # Not `Exception`: a panic inside the tokenizer or another Rust package is a BaseException.
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit):
            raise
        # No row is at fault where the server has no room, or no model to ask.
        if len(rows) == 1 or isinstance(error, OverloadError):
            return [as_row_error(error)] * len(rows)
    middle = len(rows) // 2
    return [*isolated(run, rows[:middle]), *isolated(run, rows[middle:])]


def as_row_error(error: BaseException) -> PidepError:
    """A row's error of one line. What nobody expected is logged with its traceback."""
    if isinstance(error, PidepError):
        # Tracebacks, also those of the causes, refer to the frame that keeps this error. Such a
        # circle holds the request's megabytes until Python looks for circles, many requests later.
        error.__cause__ = error.__context__ = None
        return error.with_traceback(None)
    _log.error("a row cannot be answered", exc_info=error)
    reason = " ".join(str(error).split())[:200]
    return AnswerError(
        f"the row cannot be answered ({type(error).__name__}: {reason}); see the server's log"
    )
