"""Tables on stdout, progress on stderr; JSON for machines."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import typer

__all__ = ["as_json", "progress", "table"]


class Step(Protocol):
    """What a training loop calls."""

    def __call__(self, phase: str, step: int, total: int, loss: float, /) -> None: ...


def as_json(value: Any) -> None:
    """Print one JSON document."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table."""
    from rich.console import Console
    from rich.table import Table

    drawn = Table(*columns, title=title, title_justify="left")
    for row in rows:
        drawn.add_row(*row)
    Console().print(drawn)


@contextmanager
def progress() -> Iterator[Step | None]:
    """A bar with loss and time left on a terminal, nothing elsewhere."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    # On stderr, so that `--json > file` holds nothing but JSON.
    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3f}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bars:
        known: dict[str, Any] = {}

        def step(phase: str, step: int, total: int, loss: float) -> None:
            if phase not in known:
                known[phase] = bars.add_task(phase, total=total, loss=loss)
            bars.update(known[phase], completed=step, loss=loss)

        yield step
