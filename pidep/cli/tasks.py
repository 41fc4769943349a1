"""`pidep tasks`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pidep.cli import render
from pidep.cli.options import OUTPUT, Json
from pidep.errors import UsageError

if TYPE_CHECKING:
    from pidep.gallery.suite.facts import Facts

__all__ = ["tasks"]


def tasks(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME",
            help="Packaged task to show rows of. Without it, all tasks are listed.",
            show_default=False,
        ),
    ] = None,
    export: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Write the task there as YAML, JSONL and images.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    json: Json = False,
) -> None:
    """List the packaged tasks, show rows of one, or write one as files."""
    if name is None:
        if export is not None:
            raise UsageError("`export`: needs the name of a task; pidep tasks lists them")
        _overview(json=json)
        return
    from pidep.gallery.suite import show

    facts = show.facts_of(name)
    if export is not None:
        path = show.export_task(name, export)
        render.as_json({"task": name, "path": str(path)}) if json else typer.echo(path)
        return
    rows = show.examples(name)
    if json:
        render.as_json({**_record(name, facts), "examples": rows})
        return
    typer.echo(f"{name}: {facts.asks}")
    typer.echo(f"{facts.train} training and {facts.test} test rows ({facts.balance})")
    typer.echo(facts.licence)
    for row in rows:
        typer.echo()
        typer.echo(_text(row, facts))


def _overview(*, json: bool) -> None:
    from pidep.gallery.suite.facts import FACTS

    if json:
        render.as_json([_record(name, facts) for name, facts in FACTS.items()])
        return
    columns = ("", "train", "test", "metric", "chosen from", "asks", "licence")
    rows = [_row(name, facts) for name, facts in FACTS.items()]
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    shown = ""
    for row, facts in zip(rows, FACTS.values(), strict=True):
        if facts.modality != shown:
            shown = facts.modality
            typer.echo(_line((shown, *columns[1:]), widths))
        typer.echo(_line(row, widths))


def _row(name: str, facts: Facts) -> tuple[str, ...]:
    counts = (str(facts.train), str(facts.test))
    return name, *counts, facts.metric, _few(facts.choices), facts.asks, facts.terms


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    """A line of the table; the second and third cells are numbers and stand to the right."""
    name, train, test, *others = (
        cell.ljust(width) for cell, width in zip(row, widths, strict=True)
    )
    right = (cell.strip().rjust(len(cell)) for cell in (train, test))
    return "  ".join([name, *right, *others]).rstrip()


def _few(choices: str) -> str:
    count = choices.count(", ") + 1
    return choices if count < 4 else f"{count} labels"


def _record(name: str, facts: Facts) -> dict[str, Any]:
    return {
        "name": name,
        "modality": facts.modality,
        "asks": facts.asks,
        "labels": facts.fields.get("labels"),
        "candidates": facts.fields.get("candidates_are"),
        "train": facts.train,
        "test": facts.test,
        "balance": facts.balance,
        "metric": facts.metric,
        "licence": facts.licence,
    }


def _text(row: dict[str, Any], facts: Facts) -> str:
    """A row: its answer first, then its fields; a star marks the right choice."""
    labels = facts.fields.get("labels")
    lines = [f"{row['label']}: {labels[row['label']]}"] if labels else []
    lines += [f"  {key}  {row[key]}" for key in ("image", "text") if key in row]
    for place, choice in enumerate(row.get("choices", ())):
        lines.append(f"  {'*' if place == row['label'] else ' '} {choice}")
    return "\n".join(lines)
