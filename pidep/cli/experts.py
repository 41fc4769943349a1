"""`pidep experts`: routes of the store, and rollouts on running servers."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pidep.cli import render
from pidep.cli.command import HELP, PanelCommand
from pidep.cli.options import Json
from pidep.errors import UsageError

if TYPE_CHECKING:
    from pidep.experts.mixed import Served
    from pidep.serving.auto_rollout import Evidence
    from pidep.serving.manage import Place
    from pidep.serving.store import ExpertStore, Replaced

__all__ = ["experts"]

experts = typer.Typer(
    name="experts",
    help="Roll versions of an expert out and back.",
    add_completion=False,
    rich_markup_mode=None,
    context_settings=HELP,
    no_args_is_help=True,
)

REPOSITORY, SERVERS, ROLLOUT = "Repository", "Servers", "Rollout"
Name = Annotated[str, typer.Argument(metavar="NAME", help="Served name.")]
Run = Annotated[
    str,
    typer.Argument(
        metavar="RUN", help="Run folder, expert folder, or sha256:… of a version in the store."
    ),
]
MaybeRun = Annotated[
    str | None,
    typer.Argument(
        metavar="RUN",
        help="Run folder, expert folder, or sha256:… of a version in the store.",
        show_default=False,
    ),
]
Repo = Annotated[
    Path,
    typer.Option(
        help="Model repository whose store is meant.",
        rich_help_panel=REPOSITORY,
        metavar="PATH",
    ),
]
NewLabels = Annotated[
    bool,
    typer.Option(
        "--allow-new-labels",
        help="Permit an expert with other labels, or another template, than the name has now.",
        rich_help_panel=REPOSITORY,
    ),
]
Urls = Annotated[
    list[str] | None,
    typer.Option(
        "--url",
        help="gRPC address of a server, host:port. Repeat for each server: the command returns "
        "when all of them answer by the new route, or puts the former route back.",
        rich_help_panel=SERVERS,
        metavar="TEXT",
    ),
]
Timeout = Annotated[
    float,
    typer.Option(
        help="Seconds to wait for the servers.",
        rich_help_panel=SERVERS,
        metavar="X",
        min=0.1,
        max=86400,
    ),
]
Off = Annotated[bool, typer.Option("--off", help="End it.", rich_help_panel=ROLLOUT)]
REPO = Path("model_repo")


def _command(function: Callable[..., None]) -> Callable[..., None]:
    name = function.__name__.rstrip("_")
    experts.command(name, cls=PanelCommand, context_settings=HELP)(function)
    return function


def _place(repo: Path, urls: list[str] | None = None, timeout: float = 10.0) -> Place:
    from pidep.serving.manage import Place

    return Place(repo, tuple(urls or ()), timeout)


def _changed(
    place: Place,
    name: str,
    edit: Callable[[ExpertStore], Replaced],
    *,
    json: bool,
    served: Served | None = None,
) -> None:
    from pidep.serving.manage import change

    _say(change(place, name, edit, served=served), json=json)


def _say(done: Replaced, *, json: bool) -> None:
    """What changed."""
    from pidep.serving.manage import describe

    found = done.to_json()
    if json:
        render.as_json(found)
        return
    after = describe(found["after"])
    said = f"{describe(found['before'])} → {after}" if done.is_change else f"unchanged: {after}"
    typer.echo(f"{done.alias}: {said} (revision {done.revision})")


@_command
def list_(repo: Repo = REPO, json: Json = False) -> None:
    """List the served names and their versions."""
    from pidep.serving.manage import describe, routes_of

    found = routes_of(_place(repo))
    if json:
        render.as_json(found)
        return
    for name, route in found["experts"].items():
        typer.echo(f"{name}: {describe(route)}")


@_command
def show(
    name: Name, repo: Repo = REPO, url: Urls = None, timeout: Timeout = 10.0, json: Json = False
) -> None:
    """Show a name's route, and what servers count of it."""
    from pidep.serving.manage import describe
    from pidep.serving.manage import show as shown

    found = shown(_place(repo, url, timeout), name)
    if json:
        render.as_json(found)
        return
    typer.echo(f"{name}: {describe(found)} (revision {found['revision']})")
    for address, server in found.get("servers", {}).items():
        typer.echo(f"{address}: revision {server['revision']}")
        for asked, refused in server["refused"].items():
            typer.echo(f"  {asked} refused: {refused['reason']}")
        for role, counts in server["counts"].items():
            labels = ", ".join(f"{label} {number}" for label, number in counts["labels"].items())
            line = f"  {role}: {counts['rows']} rows, {counts['errors']} errors"
            typer.echo(f"{line}; {labels}" if labels else line)
            _say_agreement(counts)


def _say_agreement(counts: dict[str, Any]) -> None:
    if "agree" not in counts:
        return
    typer.echo(f"    agrees {counts['agree']} times, disagrees {counts['disagree']} times")
    for one in counts["examples"]:
        text = one["text"] or "(no text)"
        typer.echo(f"    {text!r}: stable {one['stable']}, shadow {one['shadow']}")


@_command
def add(
    name: Name,
    run: Run,
    repo: Repo = REPO,
    url: Urls = None,
    timeout: Timeout = 10.0,
    json: Json = False,
) -> None:
    """Serve an expert under a new name."""
    from pidep.serving import routes
    from pidep.serving.manage import read_run

    place = _place(repo, url, timeout)
    served = read_run(place, run)
    _changed(place, name, lambda store: routes.add(store, name, served), json=json, served=served)


@_command
def promote(
    name: Name,
    run: MaybeRun = None,
    repo: Repo = REPO,
    allow_new_labels: NewLabels = False,
    url: Urls = None,
    timeout: Timeout = 10.0,
    json: Json = False,
) -> None:
    """Make the canary of a name, or RUN, its stable version."""
    from pidep.serving import routes
    from pidep.serving.manage import read_run

    place = _place(repo, url, timeout)
    served = None if run is None else read_run(place, run)

    def edit(store: ExpertStore) -> Replaced:
        if served is None:
            return routes.promote_canary(store, name)
        return routes.promote(store, name, served, allow_new_labels=allow_new_labels)

    _changed(place, name, edit, json=json, served=served)


@_command
def canary(
    name: Name,
    run: MaybeRun = None,
    weight: Annotated[
        float,
        typer.Option(
            help="Share of the name's rows, above 0 and below 1.",
            rich_help_panel=ROLLOUT,
            metavar="X",
        ),
    ] = 0.1,
    off: Off = False,
    auto: Annotated[
        bool,
        typer.Option(
            "--auto",
            help="Watch errors, time and labels on the servers; promote the canary, or take it "
            "back with exit code 1. Without RUN, watch the canary that the name has.",
            rich_help_panel=ROLLOUT,
        ),
    ] = False,
    rows: Annotated[
        int,
        typer.Option(
            help="Rows that the canary must answer.", rich_help_panel=ROLLOUT, metavar="N"
        ),
    ] = 1000,
    max_errors: Annotated[
        float,
        typer.Option(
            help="Largest share of failed rows above the stable version's.",
            rich_help_panel=ROLLOUT,
            metavar="X",
        ),
    ] = 0.01,
    max_slowdown: Annotated[
        float,
        typer.Option(
            help="Largest time of a run, as a multiple of the stable version's.",
            rich_help_panel=ROLLOUT,
            metavar="X",
        ),
    ] = 1.5,
    max_drift: Annotated[
        float,
        typer.Option(
            help="Largest difference between the shares of a label.",
            rich_help_panel=ROLLOUT,
            metavar="X",
        ),
    ] = 0.1,
    within: Annotated[
        float,
        typer.Option(
            help="Seconds for the verdict; then the canary is taken back.",
            rich_help_panel=ROLLOUT,
            metavar="X",
        ),
    ] = 3600.0,
    repo: Repo = REPO,
    allow_new_labels: NewLabels = False,
    url: Urls = None,
    timeout: Timeout = 10.0,
    json: Json = False,
) -> None:
    """Let a candidate answer a share of a name's rows."""
    from pidep.serving import manage, routes
    from pidep.serving.auto_rollout import Rules

    place = _place(repo, url, timeout)
    if off:
        if run is not None or auto:
            raise UsageError("`off`: ends the canary of the name; give no RUN and no `auto`")
        _changed(place, name, lambda store: routes.end_canary(store, name), json=json)
        return
    served = None if run is None else manage.read_run(place, run)
    if auto:
        rules = Rules(
            rows=rows,
            max_errors=max_errors,
            max_slowdown=max_slowdown,
            max_drift=max_drift,
            within=within,
        )
        done = manage.roll_out(
            place,
            name,
            served,
            weight=weight,
            rules=rules,
            allow_new_labels=allow_new_labels,
            progress=_progress(name, rows),
        )
        _say(done, json=json)
        return
    if served is None:
        raise UsageError("RUN: expected the candidate, found none; or give `off`, or `auto`")

    def edit(store: ExpertStore) -> Replaced:
        return routes.set_canary(
            store, name, served, weight=weight, allow_new_labels=allow_new_labels
        )

    _changed(place, name, edit, json=json, served=served)


def _progress(name: str, rows: int) -> Callable[[Evidence], None]:
    """One line on a terminal, written again at each look."""

    def shown(canary: Evidence) -> None:
        if sys.stderr.isatty():
            line = f"\r{name}: canary {canary.rows} of {rows} rows, {canary.errors} errors"
            typer.echo(line, nl=canary.rows >= rows, err=True)

    return shown


@_command
def shadow(
    name: Name,
    run: MaybeRun = None,
    off: Off = False,
    repo: Repo = REPO,
    allow_new_labels: NewLabels = False,
    url: Urls = None,
    timeout: Timeout = 10.0,
    json: Json = False,
) -> None:
    """Compare a candidate on a name's rows; it answers nobody.

    Servers count where the candidate's label differs from the stable version's.
    """
    from pidep.serving import routes
    from pidep.serving.manage import read_run

    place = _place(repo, url, timeout)
    if (run is None) != off:
        raise UsageError("RUN: expected the candidate, or `off` to end the shadow; give one")
    if run is None:
        _changed(place, name, lambda store: routes.end_shadow(store, name), json=json)
        return
    served = read_run(place, run)

    def edit(store: ExpertStore) -> Replaced:
        return routes.set_shadow(store, name, served, allow_new_labels=allow_new_labels)

    _changed(place, name, edit, json=json, served=served)


@_command
def rollback(
    name: Name,
    to: Annotated[
        str | None,
        typer.Option(
            help="Version of the history: a digest or its beginning. Without it, the former "
            "stable version.",
            rich_help_panel=ROLLOUT,
            metavar="TEXT",
        ),
    ] = None,
    repo: Repo = REPO,
    url: Urls = None,
    timeout: Timeout = 10.0,
    json: Json = False,
) -> None:
    """Return to the former stable version.

    A canary and a shadow end. Running the command again changes nothing.
    """
    from pidep.serving import routes

    place = _place(repo, url, timeout)
    _changed(place, name, lambda store: routes.rollback(store, name, to=to), json=json)


@_command
def remove(
    name: Name, repo: Repo = REPO, url: Urls = None, timeout: Timeout = 10.0, json: Json = False
) -> None:
    """Serve a name no more; rollback brings it back.

    The name's former versions stay until `pidep experts gc` removes them.
    """
    from pidep.serving import routes

    place = _place(repo, url, timeout)
    _changed(place, name, lambda store: routes.remove(store, name), json=json)


@_command
def verify(repo: Repo = REPO, json: Json = False) -> None:
    """Read every named version again, and say what is damaged.

    The exit code is 1 where a version is damaged.
    """
    from pidep.serving import routes

    found = routes.verify(_place(repo).store())
    if json:
        render.as_json([one.to_json() for one in found])
    else:
        for one in found:
            typer.echo(f"{one.digest[:19]} {', '.join(one.named_by)}: {one.fault or 'whole'}")
    if any(one.fault for one in found):
        raise typer.Exit(1)


@_command
def gc(
    keep: Annotated[
        int,
        typer.Option(
            help="Former stable versions that each name keeps for a rollback.",
            rich_help_panel=REPOSITORY,
            metavar="N",
            min=1,
        ),
    ] = 3,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Only say what would be removed.", rich_help_panel=REPOSITORY
        ),
    ] = False,
    repo: Repo = REPO,
    json: Json = False,
) -> None:
    """Remove versions that nothing needs.

    Needed are the versions of routes, of rollbacks, and the parts of mixtures.
    """
    from pidep.serving.collect import collect_garbage

    found = collect_garbage(_place(repo).store(), keep=keep, dry_run=dry_run)
    if json:
        render.as_json(found.to_json())
        return
    verb = "would remove" if dry_run else "removed"
    for digest in found.removed:
        typer.echo(f"{verb} {digest[:19]}")
    size = f"{found.freed_bytes / 2**20:.1f} MiB"
    typer.echo(f"{verb} {len(found.removed)} versions, {size}; {found.kept} stay")


@_command
def history(name: Name, repo: Repo = REPO, json: Json = False) -> None:
    """List the last changes of a name, newest first."""
    from pidep.serving import manage

    found = manage.history(_place(repo), name)
    if json:
        render.as_json(found)
        return
    for one in found:
        before, after = manage.describe(one["before"]), manage.describe(one["after"])
        when = f"{one['revision']:>4} {one['at']} {one['by']}"
        typer.echo(f"{when} {one['action']}: {before} → {after}")
