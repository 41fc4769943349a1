"""Progress without a terminal, and what Ctrl-C says."""

from __future__ import annotations

import os
import re
import shlex
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pidep.cli import progress as shown
from pidep.cli.app import COMMANDS
from pidep.cli.progress import Lines, Progress
from tests.cli.run import Done, write_pool
from tests.conftest import make_expert

Inside = Callable[..., Done]
TUNE = ("tune", "film.yaml", "--rank", 2, "--batch-size", 8, "--eval-every", 10, "--patience", 99)


def test_the_time_left_is_that_of_the_piece_of_work() -> None:
    lines = Lines(100.0)
    report = Progress(lines)
    assert lines.line(105.0) == "starting (0:05 so far)"
    report.step("own", 150, 150, 0.25)
    assert lines.line(160.0) == "own, 150 of 150, loss 0.250 (1:00 so far)"


def test_the_time_left_counts_from_the_first_step_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    lines = Lines(0.0)
    report = Progress(lines)
    clock[0] = 100.0  # loading does not count
    report.cell(10, 30, "film, lora")
    clock[0] = 120.0
    report.cell(20, 30, "book, lora")
    assert lines.line(120.0) == "book, lora, 20 of 30, about 0:20 left (2:00 so far)"
    # The next phase has a pace of its own.
    report.step("mixture", 1, 40, 0.5)
    assert "left" not in lines.line(121.0)


def test_without_a_terminal_tuning_prints_lines(
    work: Path, inside: Inside, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shown, "EVERY_S", 0.005)
    done = inside(*TUNE, "--steps", 20, "--backbone", tiny_folder, "--out", "run", "--json")
    assert done.code == 0
    assert done.out.startswith("{")
    assert done.err == ""
    assert any(
        re.match(r"film: own expert, \d+ of 20, loss \S+, about 0:0\d left", one)
        for one in done.progress
    )


def test_without_a_terminal_a_graph_prints_lines(
    work: Path, inside: Inside, tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    experts = [make_expert(tiny, name=f"task-{number}", seed=number) for number in range(12)]
    write_pool(work / "pool", *experts)
    monkeypatch.setattr(shown, "EVERY_S", 0.001)
    done = inside("graph", "pool")
    assert done.code == 0
    assert any("compares tasks with all others" in line for line in done.progress)


def interrupt_at(checkpoint: Path) -> threading.Thread:
    """Ctrl-C as soon as the file exists."""

    def watch() -> None:
        end = time.monotonic() + 60
        while not checkpoint.exists() and time.monotonic() < end:
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def test_ctrl_c_says_how_to_resume(work: Path, inside: Inside, tiny_folder: Path) -> None:
    out = work / "a run"  # the printed command quotes it
    watcher = interrupt_at(out / "checkpoint" / "own" / "progress.json")
    done = inside(*TUNE, "--steps", 160, "--backbone", tiny_folder, "--out", out)
    watcher.join()
    assert (done.code, done.out) == (130, "")
    line = done.err.strip().splitlines()[-1]
    start = "pidep: stopped; continue from the last checkpoint with: pidep tune --resume film.yaml "
    assert line.startswith(start)
    command = shlex.split(line.partition(" with: ")[2])
    assert not (out / "result.json").exists()
    again = inside(*command[1:])
    assert again.code == 0
    assert (out / "result.json").is_file()


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("compare", ["a.yaml", "b.yaml", "--shots", "8"], "pidep compare a.yaml b.yaml --shots 8"),
        ("export", ["runs/a b"], "pidep export 'runs/a b'"),
        ("tune", ["--resume", "a.yaml"], "pidep tune --resume a.yaml"),
    ],
)
def test_the_command_that_goes_on(name: str, arguments: list[str], expected: str) -> None:
    from pidep.cli.app import stopped

    assert stopped([name, *arguments]).endswith(f" with: {expected}")


def test_other_commands_only_stop() -> None:
    from pidep.cli.app import stopped

    assert stopped([]) == stopped(["doctor"]) == stopped(["--version"]) == "stopped"
    assert {name for name, entry in COMMANDS.items() if entry.stopped} == {
        "tune",
        "compare",
        "export",
        "roll",
        "experts",
    }
