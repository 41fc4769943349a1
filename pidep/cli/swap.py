"""`pidep swap`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pidep.cli import render
from pidep.cli.options import Json, options
from pidep.deployment.settings import SwapSettings

if TYPE_CHECKING:
    from pidep.experts.mixed import Served
    from pidep.serving.swap import Swapped

__all__ = ["swap"]


@options(SwapSettings)
def swap(
    settings: SwapSettings,
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Name under which the expert is served.")
    ],
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder or expert folder.")],
    json: Json = False,
) -> None:
    """Replace an expert on a running server.

    Publishes a new version of the expert. Returns when the server answers with its digest.
    """
    from pidep.experts.mixture_folder import read_served
    from pidep.experts.resolve import resolve_served_folder

    expert = read_served(resolve_served_folder(run))
    if settings.verify:
        _proved(name, expert, settings, json=json)
        return
    from pidep.serving.swap import swap_expert

    result = swap_expert(
        name,
        expert,
        settings.repo,
        settings.url,
        timeout_s=settings.timeout,
        allow_new_labels=settings.allow_new_labels,
    )
    if json:
        render.as_json(result.to_json())
        return
    typer.echo(_line(result))


def _proved(name: str, expert: Served, settings: SwapSettings, *, json: bool) -> None:
    """Swap under traffic, show what it met, and fail where a client paid for it."""
    from pidep.serving.swap_proof import prove_swap

    proof = prove_swap(
        name,
        expert,
        settings.repo,
        settings.url,
        clients=settings.clients,
        seconds=settings.seconds,
        timeout_s=settings.timeout,
        allow_new_labels=settings.allow_new_labels,
    )
    if json:
        render.as_json(proof.to_json())
    else:
        typer.echo(_line(proof.swapped))
        rows = [
            [
                phase,
                str(one.sent),
                str(one.lost),
                f"{one.p50_ms:.1f}",
                f"{one.p99_ms:.1f}",
                ", ".join(f"{digest[:19]} {count}" for digest, count in one.digests.items()),
            ]
            for phase, one in proof.phases.items()
        ]
        columns = ["", "sent", "lost", "p50 ms", "p99 ms", f"versions of {name}"]
        render.table(_memory(proof.memory_mib), columns, rows)
    proof.require_clean()


def _memory(found: tuple[float | None, float | None]) -> str:
    before, after = found
    if before is None or after is None:
        return "traffic around the swap"
    return f"traffic around the swap; the model's process took {before:.0f} → {after:.0f} MiB"


def _line(result: Swapped) -> str:
    old = result.old_digest or "new"
    return f"{result.name}: {old} → {result.new_digest} in {result.seconds:.3f} s"
