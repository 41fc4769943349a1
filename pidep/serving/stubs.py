"""The processes in which Triton Server's Python backend runs models, as Linux shows them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Stub", "stubs_of"]

_PROGRAM = b"triton_python_backend_stub"
_PROCESSES = Path("/proc")
_TICKS_PER_S = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


@dataclass(frozen=True)
class Stub:
    """One stub process."""

    pid: int
    model: str
    """Name of the model that it runs."""
    state: str
    """One letter of Linux: R running, S sleeping, T stopped, Z ended."""
    cpu_s: float
    """Seconds of CPU time that it has used."""

    @property
    def lives(self) -> bool:
        """Whether it can answer. A process that was killed stays as Z until its parent looks."""
        return self.state not in "TZX"


def stubs_of(server_pid: int) -> list[Stub]:
    """The stubs of a server, also those that cannot answer."""
    found = (_stub(process, server_pid) for process in _PROCESSES.glob("[0-9]*"))
    return [stub for stub in found if stub is not None]


def _stub(process: Path, server_pid: int) -> Stub | None:
    try:
        command = (process / "cmdline").read_bytes().split(b"\0")
        # The name in parentheses may hold spaces; what follows it does not.
        fields = (process / "stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return None  # it has ended meanwhile
    state, parent, used = fields[0], int(fields[1]), int(fields[11]) + int(fields[12])
    if parent != server_pid or not command[0].endswith(_PROGRAM):
        return None
    # `stub REPOSITORY/MODEL/VERSION/model.py …`
    model = Path(os.fsdecode(command[1])).parent.parent.name
    return Stub(int(process.name), model, state, used / _TICKS_PER_S)
