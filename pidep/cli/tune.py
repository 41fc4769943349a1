"""`pidep tune`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pidep.cli import render

__all__ = ["tune"]


def tune(
    task: Annotated[str | None, typer.Argument(help="A task YAML, or a packaged task: sentiment/{amazon,movie,nyt,tweets}.")] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; runs/<task> when absent.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML with any of these settings; flags win.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the expert; the task's name when absent.")] = None,
    backbone: Annotated[str | None, typer.Option(help="'minilm' (default), a folder, or a hub id.")] = None,
    pool: Annotated[Path | None, typer.Option(help="Folder of experts to pick neighbours from and add to.")] = None,
    helper: Annotated[list[str] | None, typer.Option(help="Task whose expert is trained into the pool when missing; repeat.")] = None,
    sites: Annotated[list[str] | None, typer.Option(help="Shell pattern over the places of pidep sites; repeat. Default '*'.")] = None,
    kind: Annotated[str | None, typer.Option(help="lora (default), adapter, prefix, prompt or bitfit.")] = None,
    rank: Annotated[int | None, typer.Option(help="LoRA rank, adapter width, or number of virtual tokens. Default 8.")] = None,
    rank_stabilized: Annotated[bool | None, typer.Option("--rslora/--no-rslora", help="Scale a LoRA by alpha / sqrt(rank).")] = None,
    steps: Annotated[int | None, typer.Option(help="Training steps of the own expert, at most. Default 150.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Texts a step. Default 16.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate of the own expert. The kind's own when absent.")] = None,
    shots: Annotated[int | None, typer.Option(help="Few-shot run: training rows of each label.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of shots, held-back rows and batches. Default 0.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Experts to interpolate with. Default 3; 0 for none.")] = None,
    predict_by: Annotated[str | None, typer.Option(help="Who the nearest are: fisher (default), or trial on the training rows.")] = None,
    policy: Annotated[
        str | None, typer.Option(help="auto (default), frozen, anchored, free, uniform or zero-shot: how to interpolate.")
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="Under zero-shot, α = softmax(similarity / temperature). Default 0.1.")] = None,
    alpha_per: Annotated[str | None, typer.Option(help="One softmax per site (default), layer, or global.")] = None,
    folds: Annotated[int | None, typer.Option(help="Folds of the cross-validation inside the shots. Default 3.")] = None,
    alpha_start: Annotated[str | None, typer.Option(help="uniform (default) or similarity.")] = None,
    mixture_steps: Annotated[int | None, typer.Option(help="Training steps of the mixture. Default 40.")] = None,
    fisher: Annotated[str | None, typer.Option(help="Fisher of the task embedding: empirical (default), true or batch_squared.")] = None,
    train_limit: Annotated[int | None, typer.Option(help="Use at most this many training rows.")] = None,
    test_limit: Annotated[int | None, typer.Option(help="Use at most this many test rows.")] = None,
    max_length: Annotated[int | None, typer.Option(help="Tokens a text is cut to; the task's own when absent.")] = None,
    max_answer_length: Annotated[int | None, typer.Option(help="Tokens of a free answer, where the task has targets. Default 32.")] = None,
    add_to_pool: Annotated[bool | None, typer.Option(help="Put the own expert into the pool; default: unless few-shot.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run folder's checkpoint.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Train an expert, predict its neighbours, interpolate with them, evaluate; writes a run folder."""
    flags: dict[str, Any] = {
        key: value for key, value in locals().items() if key not in ("out", "config", "helper", "resume", "json") and value is not None
    }
    if helper:
        flags["helpers"] = helper
    from pidep.tuning.settings import read_config

    settings = read_config(config, flags)
    from pidep.tuning.run_folder import METHODS
    from pidep.tuning.tune import tune as run

    with render.progress() as on_step:
        result = run(settings, out or Path("runs") / Path(settings.task).stem, resume=resume, on_step=on_step)
    if json:
        render.as_json(result.to_json())
        return
    if result.metrics:
        rows = [[METHODS[key], f"{value:.4f}"] for key, value in result.metrics.items()]
        render.table(f"{result.name}: {result.metric} on the test split", ["model", result.metric], rows)
    else:
        typer.echo(f"{result.name}: the test rows have no labels, so nothing was measured")
    if result.neighbours:
        render.table("nearest tasks", ["task", "similarity"], [[near.name, f"{near.similarity:.4f}"] for near in result.neighbours])
    typer.echo(f"{result.run}  {result.digest}")
