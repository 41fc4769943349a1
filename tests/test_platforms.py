"""macOS and Windows: everything but serving imports; serving says that it needs Linux."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pidep.errors import ServingError
from pidep.serving.packaged_server import find_wheel

UNIX_ONLY = ("fcntl", "grp", "pty", "pwd", "resource", "termios", "tty")
"""Modules of the standard library that Windows lacks."""
IMPORT_EVERYTHING = """
import pkgutil, sys
from importlib import import_module
sys.modules.update(dict.fromkeys(sys.argv[1].split()))  # None: an import fails
import pidep
left_out = ("pidep.__main__", "pidep.serving.triton_model")
for found in pkgutil.walk_packages(pidep.__path__, "pidep."):
    if not found.name.startswith(left_out) and "fused" not in found.name:
        import_module(found.name)
"""


def test_everything_imports_without_the_modules_of_unix() -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_EVERYTHING, " ".join(UNIX_ONLY)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_serving_says_that_it_needs_linux(system: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", system)
    with pytest.raises(ServingError, match=f"^Triton Server needs Linux, this is {system}; "):
        find_wheel()
