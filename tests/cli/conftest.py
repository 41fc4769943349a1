"""Running the command line inside this process, where a start-up per case would cost too much."""

from __future__ import annotations

import io
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pidep.cli import main
from tests.cli.run import Done


@pytest.fixture
def work(task_file: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: film.yaml and its rows.jsonl in it, nothing else."""
    monkeypatch.chdir(task_file.parent)
    return task_file.parent


@pytest.fixture
def inside(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Done]:
    """`inside("graph", pool)` runs `pidep graph …` in this process; a traceback is the test's failure."""

    def run(*arguments: object, stdin: bytes = b"") -> Done:
        monkeypatch.setattr(sys, "argv", ["pidep", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        capfd.readouterr()
        code: object = None
        on_sigterm = signal.getsignal(signal.SIGTERM)
        try:
            main()
        except SystemExit as ended:
            code = ended.code
        finally:
            signal.signal(signal.SIGTERM, on_sigterm)
        out, err = capfd.readouterr()
        return Done(int(str(code or 0)), out, err)

    return run
