"""Every error pidep raises on purpose.

    PidepError            exit code 1: the work failed
    ├── UsageError        exit code 2: what was asked cannot be done as asked
    │   ├── TaskError     a task file or its data
    │   ├── ImageError    an image, or how it is to be prepared
    │   ├── BackboneError the frozen model or its tokenizer
    │   └── ExpertError   an expert's files, or an expert that does not fit
    ├── ParityError       an exported graph is further from PyTorch than its recipe allows
    └── ServingError      Triton Server, the expert store or a request to them

A message is one line and says where, what was expected, what was found, what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "BackboneError",
    "ExpertError",
    "ImageError",
    "ParityError",
    "PidepError",
    "ServingError",
    "TaskError",
    "UsageError",
    "did_you_mean",
]


class PidepError(Exception):
    """Base of the tree; `exit_code` is what the command line returns for it."""

    exit_code = 1


class UsageError(PidepError):
    """The request itself is wrong."""

    exit_code = 2


class TaskError(UsageError):
    """A task file or its data is wrong."""


class ImageError(UsageError):
    """An image is missing, damaged, too large or of a kind that is not read."""


class BackboneError(UsageError):
    """A backbone cannot be loaded or is not the one expected."""


class ExpertError(UsageError):
    """An expert's files are damaged, unsupported, or do not fit the backbone or bank."""


class ParityError(PidepError):
    """An exported graph left the tolerance of its recipe."""


class ServingError(PidepError):
    """Triton Server, the expert store, or a request to them failed."""


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """` (did you mean 'x'?)` for the nearest choice, or an empty string."""
    near = difflib.get_close_matches(word, list(choices), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""
