"""Progress on stderr: bars on a terminal, a line every few seconds elsewhere.

On stderr, so that `--json > file` holds nothing but JSON. A library function tells its progress by
a callback, or by log records of level INFO with the attributes `done` and `total`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import typer

__all__ = ["EVERY_S", "Lines", "Progress", "progress", "time_text"]

EVERY_S = 5.0
"""Seconds between two lines. A command that ends earlier prints none."""


class _State(NamedTuple):
    key: str
    """The same for all states of one piece of work, whose time left is guessed from its start."""
    what: str
    done: int = 0
    total: int = 0
    note: str = ""


class _Display(Protocol):
    def show(self, state: _State) -> None: ...


class Progress(logging.Handler):
    """Takes the progress of the library's functions."""

    def __init__(self, display: _Display) -> None:
        super().__init__(logging.INFO)
        self._display = display

    def step(self, phase: str, step: int, total: int, loss: float) -> None:
        """A training step, as `on_step` of the library."""
        self._display.show(_State(phase, phase, step, total, f"loss {loss:.3f}"))

    def cell(self, done: int, total: int, what: str) -> None:
        """A cell of a comparison, as `on_cell` of the library."""
        self._display.show(_State("cells", what, done, total))

    def emit(self, record: logging.LogRecord) -> None:
        """A log record; its text without the values tells the piece of work."""
        if record.levelno > logging.INFO:
            return  # a warning is no progress; the program shows it as a line
        done, total = (int(getattr(record, name, 0)) for name in ("done", "total"))
        self._display.show(_State(str(record.msg), record.getMessage(), done, total))


@contextmanager
def progress(*, logs: bool = False) -> Iterator[Progress]:
    """Show the progress of the block.

    Args:
        logs: whether log records tell it.
    """
    from rich.console import Console

    console = Console(stderr=True)
    with _bars(console) if console.is_terminal else _lines() as display:
        found = Progress(display)
        if not logs:
            yield found
            return
        logger = logging.getLogger("pidep")
        level = logger.level
        logger.addHandler(found)
        logger.setLevel(logging.INFO)
        try:
            yield found
        finally:
            logger.setLevel(level)
            logger.removeHandler(found)


class Lines:
    """The newest state as a line, with the time that is left."""

    def __init__(self, started: float) -> None:
        self._started = self._since = started
        self._first = 0
        self._state = _State("", "starting")

    def show(self, state: _State, now: float | None = None) -> None:
        """Keep a state until its line is asked for."""
        old, self._state = self._state, state
        if state.key != old.key or state.done < old.done:
            self._since, self._first = time.monotonic() if now is None else now, state.done

    def line(self, now: float) -> str:
        """The line at this time."""
        state = self._state
        parts = [state.what]
        if state.total:
            parts.append(f"{state.done} of {state.total}")
        if state.note:
            parts.append(state.note)
        if self._first < state.done < state.total:
            each = (now - self._since) / (state.done - self._first)
            parts.append(f"about {time_text(each * (state.total - state.done))} left")
        return f"{', '.join(parts)} ({time_text(now - self._started)} so far)"


def time_text(seconds: float) -> str:
    """Minutes and seconds, and hours where there are some.

    >>> time_text(75), time_text(3700)
    ('1:15', '1:01:40')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@contextmanager
def _lines() -> Iterator[Lines]:
    found, end = Lines(time.monotonic()), threading.Event()

    def print_lines() -> None:
        # Without the prefix `pidep: `, by which programs find messages.
        # In a thread: long work, such as a graph's compilation, reports nothing meanwhile.
        while not end.wait(EVERY_S):
            typer.echo(found.line(time.monotonic()), err=True)

    thread = threading.Thread(target=print_lines, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        end.set()
        thread.join()


class _Bars:
    """A bar for each piece of work."""

    def __init__(self, bars: Any) -> None:
        self._bars = bars
        self._known: dict[str, Any] = {}

    def show(self, state: _State) -> None:
        """Move the bar of the state's piece of work."""
        if state.key not in self._known:
            self._known[state.key] = self._bars.add_task(state.what, note="")
        self._bars.update(
            self._known[state.key],
            description=state.what,
            completed=state.done,
            total=state.total or None,
            note=state.note,
        )


@contextmanager
def _bars(console: Any) -> Iterator[_Bars]:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.progress import (
        Progress as RichProgress,
    )

    columns = (
        # markup=False: a task's name may hold brackets.
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        TimeRemainingColumn(),
    )
    with RichProgress(*columns, console=console) as bars:
        yield _Bars(bars)
