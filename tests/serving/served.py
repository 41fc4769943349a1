"""`pidep serve` as a process, and what it leaves behind."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pidep.serving import Ports, free_ports
from pidep.serving.stubs import stubs_of
from tests.cli.run import environment

__all__ = ["Served", "members", "regions", "serving", "stub_of", "wait_until"]


def wait_until(true: Callable[[], bool], *, within_s: float = 30.0) -> None:
    deadline = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def regions(folder: Path) -> list[Path]:
    """Shared memory of the server that ran in a folder."""
    return list(Path("/dev/shm").glob(f"{folder.name}-*"))


def members(folder: Path) -> list[int]:
    """Running processes of a server: their command line names its folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes()
        except OSError:
            continue
        if str(folder).encode() in command:
            found.append(int(process.name))
    return found


@dataclass(frozen=True)
class Served:
    """A running `pidep serve`."""

    process: subprocess.Popen[str]
    folder: Path
    """Where its server runs."""
    ports: Ports

    @property
    def url(self) -> str:
        """gRPC address."""
        return f"127.0.0.1:{self.ports.grpc}"


def stub_of(served: Served) -> int | None:
    """Process of the model; None while the server starts again, in a folder of its own."""
    running = [
        stub
        for folder in served.folder.parent.glob("pidep-triton-*")
        for server in members(folder)[:1]
        for stub in stubs_of(server)
    ]
    assert len(running) <= 1
    return running[0].pid if running else None


@contextmanager
def serving(repo: Path, *options: str) -> Iterator[Served]:
    """`pidep serve`, ready; stopped at the end. Temporary files lie beside the repository."""
    ports = free_ports()
    named = [
        part
        for what, port in ports.named().items()
        for part in (f"--{what.lower()}-port", str(port))
    ]
    started = subprocess.Popen(
        [sys.executable, "-m", "pidep", "serve", str(repo), *named, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**environment(), "TMPDIR": str(repo.parent)},
    )
    assert started.stdout is not None
    try:
        ready = started.stdout.readline()
        assert ready.startswith("ready: "), ready
        assert "pidep_bank" in ready
        yield Served(started, Path(ready.split()[-1]).parent, ports)
    finally:
        # Also where a test fails: its server must not run on.
        started.terminate()
        started.wait()
        started.stdout.close()
