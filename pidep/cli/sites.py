"""`pidep sites`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from pidep.backbones.settings import SitesSettings
from pidep.cli import render
from pidep.cli.options import Json, options

if TYPE_CHECKING:
    from pidep.adapters.places import Place, Survey
    from pidep.backbones.sites import BackboneSites

__all__ = ["sites"]


@options(SitesSettings)
def sites(settings: SitesSettings, json: Json = False) -> None:
    """List where experts can act on a backbone, and their size."""
    if settings.tested:
        _tested(json=json)
        return
    from pidep.adapters.kinds import KINDS
    from pidep.backbones.sites import list_sites

    found = list_sites(settings)
    if json:
        render.as_json(found.to_json())
        return
    typer.echo(f"{found.backbone}: {found.model}, {found.parameters:,} parameters; {_known(found)}")
    for name in KINDS:
        if name in found.problems:
            typer.echo(f"\n{name}: {found.problems[name]}")
        elif name in found.kinds:
            every_site = settings.kind is not None
            typer.echo(f"\n{_text(found.kinds[name], found.parameters, every_site=every_site)}")


def _tested(*, json: bool) -> None:
    """Print the architectures and kinds of expert that are tested."""
    from pidep.adapters.tested import EVERY, TESTED

    if json:
        render.as_json({model_type: found._asdict() for model_type, found in TESTED.items()})
        return
    rows = [
        [one.name, one.family, *("✓" if name in one.kinds else "–" for name in EVERY)]
        for one in TESTED.values()
    ]
    columns = ["architecture", "family", *EVERY]
    render.table("experts on architectures of transformers, as tested", columns, rows)


def _known(found: BackboneSites) -> str:
    if found.architecture is None:
        return "an architecture that is not among the tested ones (pidep sites --tested)"
    return f"{found.architecture.name} is tested with {', '.join(found.architecture.kinds)}"


def _text(found: Survey, total: int, *, every_site: bool) -> str:
    """A heading, and a line for each site or each group of sites that differ by numbers."""
    groups: dict[tuple[str, str, str], list[Place]] = {}
    for place in found.places:
        name = place.site if every_site else _with_stars(place.site)
        tensors = ", ".join(
            f"{tensor} {'×'.join(map(str, shape))}" for tensor, shape in place.shapes.items()
        )
        groups.setdefault((name, place.module, tensors), []).append(place)
    rows = [
        (
            name,
            module if every_site else f"{len(places)} × {module}",
            tensors,
            f"{sum(place.parameters for place in places):,}",
        )
        for (name, module, tensors), places in groups.items()
    ]
    names, modules, shapes, counts = (max(map(len, column)) for column in zip(*rows, strict=True))
    where = "1 site" if len(found.places) == 1 else f"{len(found.places)} sites"
    share = f"{found.parameters / total:.3%} of the backbone"
    head = f"{found.kind}: {found.changes}; {where}, {found.parameters:,} parameters, {share}"
    lines = [
        f"  {row[0]:{names}}  {row[1]:{modules}}  {row[2]:{shapes}}  {row[3]:>{counts}}"
        for row in rows
    ]
    return "\n".join([head, *lines])


def _with_stars(site: str) -> str:
    """The site's name with a star in the place of each number."""
    return ".".join("*" if part.isdigit() else part for part in site.split("."))
