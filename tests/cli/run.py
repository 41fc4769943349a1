"""Runs `pidep` as a user does, and makes the folders to run it on."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Contents = dict[str, bytes | None]


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str
    """Standard error without the lines of progress, which only a slow machine sees."""
    progress: tuple[str, ...] = ()

    @classmethod
    def of(cls, code: int, out: str, err: str) -> Done:
        """Lines of progress and other lines of standard error apart."""
        lines = err.splitlines(keepends=True)
        progress = [line for line in lines if re.search(r" \(\d+:\d\d so far\)$", line)]
        rest = "".join(line for line in lines if line not in progress)
        return cls(code, out, rest, tuple(line.rstrip("\n") for line in progress))


PLAIN = {"NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "200"}
"""Environment of a command: no terminal, and lines long enough for a table."""


def environment() -> dict[str, str]:
    """Environment of a child process: offline, one thread, no terminal."""
    return {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **PLAIN}


def pidep(*arguments: object, cwd: Path, stdin: str | bytes = "") -> Done:
    """Run `pidep` in a real process."""
    given = stdin.encode() if isinstance(stdin, str) else stdin
    command = [sys.executable, "-m", "pidep", *map(str, arguments)]
    done = subprocess.run(
        command, cwd=cwd, input=given, capture_output=True, env=environment(), timeout=110
    )
    return Done.of(done.returncode, done.stdout.decode(), done.stderr.decode(errors="replace"))


IN_TURN = """
import json, sys
from pidep.cli import main
for command in json.loads(sys.argv[1]):
    sys.argv, code = ["pidep", *command], 0
    try:
        main()
    except SystemExit as ended:
        code = ended.code or 0
    for stream in (sys.stdout, sys.stderr):
        print(code, end="\\x1e", file=stream, flush=True)
"""


def in_turn(*commands: Sequence[object], cwd: Path) -> list[Done]:
    """One real process for several commands, so that torch and transformers are imported once."""
    given = json.dumps([[str(part) for part in command] for command in commands])
    done = subprocess.run(
        [sys.executable, "-c", IN_TURN, given],
        cwd=cwd,
        capture_output=True,
        env=environment(),
        timeout=110,
    )
    outs, errs = (stream.decode().split("\x1e") for stream in (done.stdout, done.stderr))
    assert (done.returncode, outs.pop(), errs.pop()) == (0, "", ""), errs
    return [Done.of(int(out[-1]), out[:-1], err[:-1]) for out, err in zip(outs, errs, strict=True)]


def contents(folder: Path) -> Contents:
    """Every path below a folder, with the bytes of its files."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def assert_refused(done: Done, match: str, *, code: int = 2) -> None:
    """Exactly one line on stderr, nothing on stdout, and the right exit code.

    The code is 2 for a wrong request and 1 for failed work.
    """
    # A slow machine also prints how far the command is.
    lines = [line for line in done.err.splitlines() if not line.endswith(" so far)")]
    assert len(lines) == 1, f"expected one line, found:\n{done.err}"
    assert lines[0].startswith("pidep: ")
    assert re.search(match, lines[0]), f"{lines[0]!r} does not match {match!r}"
    assert done.out == ""
    assert done.code == code


@contextmanager
def untouched(folder: Path) -> Iterator[None]:
    """Inside, nothing below the folder is added, removed or changed."""
    before = contents(folder)
    yield
    after = contents(folder)
    assert sorted(after) == sorted(before)
    assert after == before


def nobody() -> str:
    """An address where nobody listens."""
    from pidep.serving.server import free_ports

    return f"127.0.0.1:{free_ports().grpc}"


def write_run(folder: Path, expert: Any, task_file: Path) -> Path:
    """A run folder with the files that export and swap read."""
    from pidep.experts.folder import write_expert
    from pidep.tasks.task import load_task

    write_expert(expert, folder / "expert")
    (folder / "task.json").write_text(load_task(task_file).model_dump_json())
    return folder


def write_pool(pool: Path, *experts: Any) -> Path:
    """A pool of experts, each with a random task embedding of its own."""
    from pidep.experts.folder import write_expert

    for seed, expert in enumerate(experts):
        rng = np.random.default_rng(seed)
        tensors = [
            (f"{site}.{name}", array)
            for site, named in expert.sites.items()
            for name, array in named.items()
        ]
        embedding = {
            name: rng.exponential(size=array.shape).astype(np.float32) for name, array in tensors
        }
        write_expert(expert, pool / expert.name, fisher=embedding)
    return pool
