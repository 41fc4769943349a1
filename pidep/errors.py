"""The errors that pidep raises on purpose.

    PidepError            exit code 1: the work failed
    ├── UsageError        exit code 2: the request is wrong
    │   ├── TaskError     a task file or its data
    │   ├── ImageError    an image, or its preprocessing
    │   ├── BackboneError the frozen model or its tokenizer
    │   └── ExpertError   an expert's files, or an expert that does not fit
    ├── ParityError       an exported graph is outside its recipe's tolerance
    └── ServingError      Triton Server, the expert store, or a request to them
        ├── AnswerError       the graph failed on a row, or its answer is not finite
        ├── OverloadError     the server has more requests than it can answer in time
        └── UnreachableError  no answer at all: nobody listens, or nobody answers in time

A message is one line. It says where, what was expected, what was found, and what to do. A setting
stands in backticks, "give `top_k`": the command line replaces it by its option, `--top-k`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "AnswerError",
    "BackboneError",
    "ExpertError",
    "ImageError",
    "OverloadError",
    "ParityError",
    "PidepError",
    "ServingError",
    "TaskError",
    "UnreachableError",
    "UsageError",
    "did_you_mean",
    "fault_of_path",
    "fault_of_text",
]


class PidepError(Exception):
    """Base of the tree. `exit_code` is the exit code of the command line."""

    exit_code = 1


class UsageError(PidepError):
    """The request is wrong; nothing failed."""

    exit_code = 2


class TaskError(UsageError):
    """A task file or its data is wrong."""


class ImageError(UsageError):
    """An image is missing, damaged, too large, or in a format that pidep cannot read."""


class BackboneError(UsageError):
    """A backbone cannot be loaded, or another backbone was expected."""


class ExpertError(UsageError):
    """An expert's files are damaged, unsupported, or do not fit the backbone or bank."""


class ParityError(PidepError):
    """An exported graph is outside the tolerance of its recipe."""


class ServingError(PidepError):
    """Triton Server, the expert store, or a request to them failed."""


class AnswerError(ServingError):
    """The graph failed on a row, or its answer is not finite."""


class OverloadError(ServingError):
    """The server has more requests than it can answer in time; this one was not run."""


class UnreachableError(ServingError):
    """No answer came at all: nobody listens there, or the answer took too long."""


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """` (did you mean 'x'?)` for the nearest choice, or an empty string."""
    near = difflib.get_close_matches(word, list(choices), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def fault_of_text(text: str) -> str:
    """What keeps a text out of files, JSON and requests; empty where nothing does."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = ascii(text[error.start])
        return f"{ascii(text)[:100]} is not UTF-8 (it holds {half}); encode it as UTF-8"
    return ""


def fault_of_path(path: object) -> str:
    """Why a path cannot name a file or be written as JSON; empty where it can."""
    # A zero byte ends a path for the operating system.
    return fault_of_text(str(path)) or ("has a zero byte; remove it" if "\0" in str(path) else "")
