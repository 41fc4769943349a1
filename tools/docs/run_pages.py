"""Run a document: every ```console command and ```python block, in order, in one bash session and a fresh folder.

    python docs/run_quickstart.py [document.md] [--timeout SECONDS]

A console command starts with `$ ` and goes on over lines that end in a backslash; the other lines of the block are
output and are not compared. Stops at the first command that fails, with exit code 1.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import select
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from pidep.serving.server import Ports, free_ports

DEFAULTS = Ports()
STOP_WITHIN_S = 60.0
# Background jobs first, so that a server ends in order; then whatever else is left of the process group.
_ON_EXIT = "kill $(jobs -p) 2>/dev/null; wait; trap '' TERM; kill -TERM 0"


class RunError(Exception):
    """A command failed, hung, or ended the session; the message says which."""


@dataclass(frozen=True)
class Step:
    """A shell command or a Python block, with the line of the document it starts at."""

    line: int
    kind: str
    text: str

    @property
    def shell(self) -> str:
        """What bash evaluates."""
        return self.text if self.kind == "console" else f"python - <<'END_OF_BLOCK'\n{self.text}\nEND_OF_BLOCK"

    @property
    def title(self) -> str:
        """What is printed before it runs."""
        return f"$ {self.text}" if self.kind == "console" else f"(python block of {len(self.text.splitlines())} lines)"


def extract(markdown: str) -> list[Step]:
    """The steps of a document, in order; blocks of other languages are left alone.

    Raises:
        RunError: a block or a continued command has no end.
    """
    steps: list[Step] = []
    lines = iter(enumerate(markdown.splitlines(), 1))
    for number, line in lines:
        fence = re.fullmatch(r"```(\w*)", line.rstrip())
        if fence is None:
            continue
        body: list[tuple[int, str]] = []
        for inner in lines:
            if inner[1].rstrip() == "```":
                break
            body.append(inner)
        else:
            raise RunError(f"line {number}: the block has no closing ```")
        if fence[1] == "python":
            steps.append(Step(number, "python", "\n".join(text for _, text in body)))
        elif fence[1] == "console":
            steps += _commands(body)
    return steps


def _commands(body: list[tuple[int, str]]) -> list[Step]:
    found: list[Step] = []
    lines = iter(body)
    for number, text in lines:
        if not text.startswith("$ "):
            continue
        parts = [text[2:]]
        while parts[-1].endswith("\\"):
            following = next(lines, None)
            if following is None:
                raise RunError(f"line {number}: the command ends in a backslash")
            parts.append(following[1])
        found.append(Step(number, "console", "\n".join(parts)))
    return found


def _taken(ports: Ports) -> list[int]:
    """Which of the ports somebody listens on."""
    found = []
    for port in (ports.http, ports.grpc, ports.metrics):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((ports.host, port))
            except OSError:
                found.append(port)
    return found


def with_ports(text: str, ports: Ports) -> str:
    """The text of a step with the default ports, written or implied, replaced."""
    for old, new in ((DEFAULTS.http, ports.http), (DEFAULTS.grpc, ports.grpc), (DEFAULTS.metrics, ports.metrics)):
        text = re.sub(rf":{old}\b", f":{new}", text)
    infer = ports.http if "--protocol http" in text else ports.grpc
    options = {
        "serve": f"--http-port {ports.http} --grpc-port {ports.grpc} --metrics-port {ports.metrics}",
        "infer": f"--url {ports.host}:{infer}",
        "swap": f"--url {ports.host}:{ports.grpc}",
    }
    return re.sub(r"\bpidep (serve|infer|swap)\b", lambda match: f"{match[0]} {options[match[1]]}", text)


class Session:
    """One bash in a process group of its own; leaving it stops what it started, and nothing else."""

    def __init__(self, folder: Path, *, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._deadline = time.monotonic() + timeout_s
        self._status, self._report = os.pipe()
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
        self._bash = subprocess.Popen(
            ["bash", "--norc", "--noprofile"],
            cwd=folder,
            env={**os.environ, "PATH": path},
            stdin=subprocess.PIPE,
            pass_fds=[self._report],
            start_new_session=True,
            text=True,
        )
        os.close(self._report)  # now only bash has it, so its end is seen; the number stays in use below
        self._send(f"set -o pipefail; trap {shlex.quote(_ON_EXIT)} EXIT")

    def _send(self, line: str) -> None:
        assert self._bash.stdin is not None
        self._bash.stdin.write(line + "\n")
        self._bash.stdin.flush()

    def run(self, step: Step) -> float:
        """Run a step; the seconds it took.

        Raises:
            RunError: it failed, ran into the deadline, or ended the session.
        """
        started = time.monotonic()
        where = f"line {step.line}: {step.title.splitlines()[0]}"
        self._send(f"eval {shlex.quote(step.shell)} </dev/null {self._report}>&-; echo $? >&{self._report}")
        if not select.select([self._status], [], [], max(0.0, self._deadline - started))[0]:
            raise RunError(f"{where}: still running when the {self._timeout_s:g} s for the whole document were over")
        code = os.read(self._status, 16).decode().strip()
        if code != "0":
            raise RunError(f"{where}: ended with exit code {code}" if code else f"{where}: ended the session")
        return time.monotonic() - started

    def __enter__(self) -> Session:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self._bash.stdin is not None
        if error is not None:
            self._bash.terminate()
        with contextlib.suppress(BrokenPipeError):
            self._bash.stdin.close()
        try:
            self._bash.wait(timeout=STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            os.killpg(self._bash.pid, signal.SIGKILL)
            self._bash.wait()
        os.close(self._status)


def run(document: Path, *, timeout_s: float) -> None:
    """Run a document in a temporary folder, printing each step and its time.

    Raises:
        RunError: at the first step that fails.
    """
    steps = extract(document.read_text(encoding="utf-8"))
    ports = DEFAULTS
    if taken := _taken(DEFAULTS):
        ports = free_ports()
        print(f"port {', '.join(map(str, taken))} is taken: running with {ports.http}, {ports.grpc}, {ports.metrics} instead", flush=True)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="pidep-docs-") as folder:
        with Session(Path(folder), timeout_s=timeout_s) as session:
            for step in steps:
                step = step if ports is DEFAULTS else Step(step.line, step.kind, with_ports(step.text, ports))
                print(f"\n{step.title}", flush=True)
                print(f"  [{session.run(step):.1f} s]", flush=True)
    print(f"\n{document.name}: {len(steps)} steps in {time.monotonic() - started:.0f} s", flush=True)


def main() -> None:
    """Parse, run, report in one line."""
    parser = argparse.ArgumentParser(description="Run every command of a document.")
    parser.add_argument("document", nargs="?", type=Path, default=Path(__file__).with_name("quickstart.md"))
    parser.add_argument("--timeout", type=float, default=900.0, help="seconds for the whole run (default 900)")
    options = parser.parse_args()
    try:
        run(options.document, timeout_s=options.timeout)
    except (RunError, OSError) as error:
        print(f"{options.document.name}: {error}", file=sys.stderr)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
