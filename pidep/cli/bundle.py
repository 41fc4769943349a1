"""`pidep bundle`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pidep.cli import render
from pidep.cli.options import Json, options
from pidep.deployment.settings import BundleSettings

__all__ = ["bundle"]


@options(BundleSettings)
def bundle(
    settings: BundleSettings,
    entry: Annotated[
        Path,
        typer.Argument(metavar="ENTRY", help="A model's folder, such as model_repo/pidep_bank."),
    ],
    json: Json = False,
) -> None:
    """Write the files that run an entry in NVIDIA's container and on a cluster.

    An image, a compose file, Kubernetes manifests, a KServe service, Prometheus rules and a Grafana
    dashboard. No file holds a key or the model.
    """
    from pidep.deployment.bundle import write_bundle

    result = write_bundle(entry, settings)
    if json:
        render.as_json(result.to_json())
        return
    typer.echo(f"{result.out}: {len(result.files)} files for image {result.image}")
    for name in result.files:
        typer.echo(f"  {name}")
