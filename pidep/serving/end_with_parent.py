"""Start a program that ends when this process ends, even by `kill -9`.

Run as a script, this file turns itself into that program.
"""

from __future__ import annotations

import ctypes
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

__all__ = ["start"]

_PR_SET_PDEATHSIG = 1


def start(
    command: Sequence[str], *, log: IO[bytes], env: Mapping[str, str], cwd: Path
) -> subprocess.Popen[bytes]:
    """Start a program; Linux sends SIGTERM to it when this process is gone.

    The program has a process group of its own: Ctrl-C reaches this process alone, which then
    decides how the program ends.
    """
    started: queue.SimpleQueue[subprocess.Popen[bytes] | OSError] = queue.SimpleQueue()
    # -I and -S: nothing of the environment or of site-packages is imported for three calls.
    wrapper = [sys.executable, "-I", "-S", __file__, str(os.getpid())]

    def run() -> None:
        try:
            process = subprocess.Popen(
                [*wrapper, *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=env,
                cwd=cwd,
                start_new_session=True,
            )
        except OSError as error:
            started.put(error)
            return
        started.put(process)
        # The signal comes when the *thread* ends that started the program, so this one stays.
        process.wait()

    threading.Thread(target=run, name="pidep-server-parent", daemon=True).start()
    found = started.get()
    if isinstance(found, OSError):
        raise found
    return found


def _become(parent: int, command: Sequence[str]) -> None:
    """Turn this process into the program. Its end is bound to its parent's end."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    # A parent that ended before the call above sends no signal.
    if os.getppid() != parent:
        sys.exit("the process that started this program has ended")
    # Python ignores SIGPIPE, and a program inherits what is ignored.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    os.execv(command[0], list(command))


if __name__ == "__main__":
    _become(int(sys.argv[1]), sys.argv[2:])
