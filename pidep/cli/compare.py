"""`pidep compare`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pidep.cli import render
from pidep.errors import UsageError

if TYPE_CHECKING:
    from pidep.lab.compare import OnCell

__all__ = ["compare"]

NAMES = {
    "backbone": "bare backbone",
    "own": "own expert",
    "own_tuned": "own, rate chosen",
    "bitfit": "BitFit",
    "full": "full fine-tuning",
    "uniform": "uniform mixture",
    "uniform_outputs": "uniform, outputs",
    "joint": "joint training",
    "peft_linear": "PEFT linear",
    "peft_svd": "PEFT svd",
    "peft_cat": "PEFT cat",
    "lorahub": "LoraHub",
    "pi": "π",
    "pi_trial": "π, by trial",
}
PLAIN = ("backbone", "finetune_steps", "full_steps", "max_length", "pool", "sites", "size", "steps", "test_limit", "top_k", "train_limit")
"""Options that are settings as they are."""


def compare(
    tasks: Annotated[list[str], typer.Argument(help="Two tasks or more, YAML or packaged: each is the target in turn, the others help.")],
    out: Annotated[Path, typer.Option(help="Run folder; cells that are finished in it are not measured again.")] = Path("compare"),
    shots: Annotated[list[int] | None, typer.Option(help="A column: this many training rows of each label; repeat.")] = None,
    full: Annotated[bool, typer.Option("--full", help="A column: all training rows.")] = False,
    seeds: Annotated[str, typer.Option(help="Seeds, with commas between.")] = "0,1,2",
    full_seeds: Annotated[str | None, typer.Option(help="Seeds of the --full column; those of --seeds when absent.")] = None,
    kind: Annotated[list[str] | None, typer.Option(help="lora (default), adapter, prefix, prompt or bitfit; repeat.")] = None,
    methods: Annotated[str | None, typer.Option(help=f"Some of {', '.join(NAMES)}, with commas between. Default: all.")] = None,
    sites: Annotated[list[str] | None, typer.Option(help="Shell pattern over the places of pidep sites; repeat. Default '*'.")] = None,
    size: Annotated[int | None, typer.Option(help="LoRA rank, adapter width, or number of virtual tokens. Default 8.")] = None,
    backbone: Annotated[str | None, typer.Option(help="'minilm' (default), a folder, or a hub id.")] = None,
    pool: Annotated[Path | None, typer.Option(help="Folder of further experts that may help.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Experts to interpolate with. Default 3.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps at few shots, more if that is under 5 passes over the rows. Default 40.")] = None,
    full_steps: Annotated[int | None, typer.Option(help="Training steps on all rows, at most. Default 200.")] = None,
    finetune_steps: Annotated[int | None, typer.Option(help="Steps of full fine-tuning, if fewer than the experts'.")] = None,
    max_length: Annotated[int | None, typer.Option(help="Tokens a text is cut to; the task's own when absent.")] = None,
    train_limit: Annotated[int | None, typer.Option(help="Use at most this many training rows as full data.")] = None,
    test_limit: Annotated[int | None, typer.Option(help="Use at most this many test rows.")] = None,
    prepare: Annotated[bool, typer.Option("--prepare", help="Train the helpers and stop.")] = False,
    part: Annotated[str | None, typer.Option(metavar="I/N", help="Every N-th cell from I on (0/2, 1/2); --prepare before.")] = None,
    redo: Annotated[list[str] | None, typer.Option(help="A method to measure again in every cell; repeat.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Measure what was made with other settings anew.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the summary and every single run as JSON.")] = False,
) -> None:
    """Measure π against every baseline: same rows, same seeds, same steps; resumable cell by cell."""
    given = locals()
    flags: dict[str, Any] = {key: given[key] for key in PLAIN if given[key] is not None}
    flags |= {"tasks": tasks, "full": full, "shots": shots or [], "seeds": _numbers("--seeds", seeds)}
    if full_seeds is not None:
        flags["full_seeds"] = _numbers("--full-seeds", full_seeds)
    if kind:
        flags["kinds"] = kind
    if methods is not None:
        flags["methods"] = [word.strip() for word in methods.split(",")]
    share = None if part is None else _part(part)
    from pidep.lab.compare_config import check_methods, compare_config

    config, again = compare_config(flags), check_methods(redo or [])
    from pidep.lab.compare import compare as run
    from pidep.lab.compare_grid import Part

    with _progress() as on_cell:
        result = run(
            config,
            out,
            part=share and Part(*share),
            prepare=prepare,
            overwrite=overwrite,
            redo=again,
            on_cell=on_cell,
        )
    if json:
        render.as_json(result.to_json())
        return
    if result.cells:
        _tables(result.summary)
    if result.missing:
        typer.echo(f"{result.missing} of {result.missing + len(result.cells)} cells are not measured yet")
    typer.echo(str(result.out))


def _numbers(option: str, text: str) -> list[int]:
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise UsageError(f"{option} {text!r}: expected whole numbers with commas between, such as 0,1,2") from None


def _part(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if found is None or not int(found[1]) < int(found[2]):
        raise UsageError(f"--part {text!r}: expected I/N with I from 0 to N - 1, such as 0/2")
    return int(found[1]), int(found[2])


def _tables(summary: dict[str, Any]) -> None:
    """One table for each column of the grid: methods down, tasks across, per cent with the standard deviation."""
    runs, averages = summary["runs"], summary["averages"]
    for kind, shots in dict.fromkeys((row["kind"], row["shots"]) for row in runs):
        here = [row for row in runs if (row["kind"], row["shots"]) == (kind, shots)]
        tasks = list(dict.fromkeys(row["task"] for row in here))
        means = {row["method"]: row["mean"] for row in averages if (row["kind"], row["shots"]) == (kind, shots)}
        cells = {(row["method"], row["task"]): _mean_and_sd(row) for row in here}
        seeds = max(len(row["scores"]) for row in here)
        title = f"{kind}, {f'{shots} shots a label' if shots else 'full data'}, {seeds} {'seed' if seeds == 1 else 'seeds'}"
        rows = [[NAMES[name], *(cells.get((name, task), "") for task in tasks), f"{100 * mean:.1f}"] for name, mean in means.items()]
        render.table(title, ["method", *tasks, "average"], rows)
    for row in summary["losing"]:
        column = f"{row['kind']}, {row['task']}, {row['shots'] or 'full'}"
        typer.echo(f"π loses: {column}: {100 * row['difference']:+.1f} against {NAMES[row['against']]}")


def _mean_and_sd(row: dict[str, Any]) -> str:
    return f"{100 * row['mean']:.1f}" if row["sd"] is None else f"{100 * row['mean']:.1f} ± {100 * row['sd']:.1f}"


@contextmanager
def _progress() -> Iterator[OnCell | None]:
    """Cells done and what is being done, on a terminal; nothing elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    with Progress(BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"), console=console) as bars:
        bar = bars.add_task("", total=None)

        def on_cell(done: int, total: int, what: str) -> None:
            bars.update(bar, completed=done, total=total or None, description=what)

        yield on_cell
