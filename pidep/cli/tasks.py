"""`pidep tasks`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pidep.cli import render
from pidep.errors import UsageError

if TYPE_CHECKING:
    from pidep.gallery.suite.facts import Facts

__all__ = ["tasks"]


def tasks(
    name: Annotated[
        str | None, typer.Argument(help="A packaged task: show rows of it. Default: list them all.", show_default=False)
    ] = None,
    export: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Write the task there as YAML, JSONL and images.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """List the packaged tasks, show rows of one, or write it as files to start from."""
    if name is None:
        if export is not None:
            raise UsageError("--export: is of one task; name it")
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
    typer.echo(f"{name}: {facts.asks}\n{facts.train} training and {facts.test} test rows ({facts.balance})\n{facts.licence}")
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
    return name, str(facts.train), str(facts.test), facts.metric, _few(facts.choices), facts.asks, facts.terms


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    """Numbers, which come second and third, to the right."""
    name, train, test, *others = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
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
    """A row: its answer first; of the choices the right one has a star."""
    labels = facts.fields.get("labels")
    lines = [f"{row['label']}: {labels[row['label']]}"] if labels else []
    lines += [f"  {key}  {row[key]}" for key in ("image", "text") if key in row]
    lines += [f"  {'*' if place == row['label'] else ' '} {choice}" for place, choice in enumerate(row.get("choices", ()))]
    return "\n".join(lines)
