"""The key of administrative calls: from a file, or from the environment."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from pidep.errors import UsageError
from pidep.files.bounded_read import read_file
from pidep.serving.launch_options import ADMIN_KEY_VARIABLE

__all__ = ["read_admin_key", "require_key"]

_KEY = re.compile(r"[A-Za-z0-9]{16,256}")
"""The key is a part of an option of Triton Server, where other characters mean more."""
_MAX_BYTES = 4096
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def read_admin_key(path: Path | None) -> str | None:
    """The key in a file, or in the environment variable; None where there is neither.

    Args:
        path: a file that holds the key alone; a newline at its end does not count.

    Raises:
        UsageError: both are given, or the file is missing, is no plain file, can be read by other
            users, or holds no key.
    """
    variable = os.environ.get(ADMIN_KEY_VARIABLE) or None
    if path is None:
        if variable is not None:
            require_key(variable, ADMIN_KEY_VARIABLE)
        return variable
    if variable:
        raise UsageError(
            f"`admin_key_file`: {ADMIN_KEY_VARIABLE} is set, too; give the key in one of them"
        )
    try:
        data = read_file(path, limit=_MAX_BYTES)
        mode = path.stat().st_mode
    except FileNotFoundError as error:
        raise UsageError(
            f"{path}: no such file; make one with `(umask 077; openssl rand -hex 32 > {path})`"
        ) from error
    # Windows has other permissions, and shows none of these.
    if os.name == "posix" and mode & _OTHERS:
        raise UsageError(
            f"{path}: holds a key, and other users can open it (mode {stat.S_IMODE(mode):04o}); "
            f"run chmod 600 {path}"
        )
    key = data.rstrip(b"\r\n").decode("ascii", "replace")
    require_key(key, str(path))
    return key


def require_key(key: str, where: str = "the key of administrative calls") -> None:
    """Raise unless a text can be a key.

    Raises:
        UsageError: the key is too short, or holds other characters than letters and digits.

    >>> require_key("0123456789abcdef")
    """
    if not _KEY.fullmatch(key):
        # The message shows no character of the key: it may come into a log.
        raise UsageError(
            f"{where}: expected at least 16 letters and digits, such as `openssl rand -hex 32` "
            "prints"
        )
