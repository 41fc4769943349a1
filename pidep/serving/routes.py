"""Routes of a store: the stable version of a name, its canary, its shadow, and the way back.

Each function changes one name in one step of the manifest. Running a function again changes
nothing, and a process that is killed leaves the old route or the new one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pidep.artifacts.manifest import Canary, Manifest, Role, Route
from pidep.artifacts.route_history import Action, Change
from pidep.errors import ExpertError, UsageError, did_you_mean
from pidep.experts.folder import check_name
from pidep.experts.mixed import Served
from pidep.serving.collect import KEEP, window
from pidep.serving.history import changes_of, stable_versions
from pidep.serving.store import ExpertStore, Replaced

__all__ = [
    "Checked",
    "add",
    "end_canary",
    "end_shadow",
    "promote",
    "promote_canary",
    "remove",
    "rollback",
    "route_of",
    "set_canary",
    "set_shadow",
    "verify",
]


@dataclass(frozen=True)
class Checked:
    """A version that was read again."""

    digest: str
    named_by: tuple[str, ...]
    """`film` for a stable version, `film@canary`, `film@shadow`; `former` for a rollback's."""
    fault: str
    """Empty where the version is whole."""

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {"digest": self.digest, "named_by": list(self.named_by), "fault": self.fault}


def route_of(manifest: Manifest, name: str) -> Route:
    """What a name means.

    Raises:
        ExpertError: nobody serves it.
    """
    routes = manifest.routes
    if name not in routes:
        known = ", ".join(list(routes)[:10]) or "none"
        raise ExpertError(
            f"unknown name {name[:60]!r}; the store has: {known}{did_you_mean(name, routes)}"
        )
    return routes[name]


def add(
    store: ExpertStore, name: str, served: Served, *, allow_new_labels: bool = False
) -> Replaced:
    """Serve an expert under a new name.

    Raises:
        ExpertError: the name has another version already.
    """
    digest = served.digest

    def edit(manifest: Manifest) -> Manifest:
        now = manifest.aliases.get(name, digest)
        if now != digest:
            raise ExpertError(
                f"name {name!r}: is served already, by {now[:19]}…; replace the version with "
                "pidep experts promote, or try it with pidep experts canary"
            )
        return manifest.naming({name: digest})

    return store.publish(served, name, action="add", edit=edit, allow_new_labels=allow_new_labels)


def promote(
    store: ExpertStore, name: str, served: Served, *, allow_new_labels: bool = False
) -> Replaced:
    """Make an expert the stable version of a name.

    Raises:
        ExpertError: nobody serves the name, or it would mean something else.
    """

    def edit(manifest: Manifest) -> Manifest:
        return manifest.routing({name: route_of(manifest, name).with_stable(served.digest)})

    return store.publish(
        served, name, action="promote", edit=edit, allow_new_labels=allow_new_labels
    )


def promote_canary(store: ExpertStore, name: str, *, expected: str | None = None) -> Replaced:
    """Make the canary of a name its stable version.

    Args:
        expected: refuse another canary than this one.

    Raises:
        ExpertError: the name has no canary, or its version is damaged.
    """

    def edit(manifest: Manifest) -> Manifest:
        route = route_of(manifest, name)
        if route.canary is None:
            last = changes_of(store.folder, name, manifest)[-1:]
            # The command again, after it was killed: the canary is the stable version already.
            if last and last[0].action == "promote" and last[0].after == route:
                return manifest
            raise ExpertError(f"{name!r} has no canary; start one with pidep experts canary")
        digest = route.canary.digest
        if expected not in (None, digest):
            raise ExpertError(
                f"{name!r} has another canary meanwhile, expected {str(expected)[:19]}…, found "
                f"{digest[:19]}…; run the command again"
            )
        store.load(digest)
        return manifest.routing({name: route.with_stable(digest)})

    return store.change(name, edit, action="promote")


def set_canary(
    store: ExpertStore,
    name: str,
    served: Served,
    *,
    weight: float,
    allow_new_labels: bool = False,
) -> Replaced:
    """Let an expert answer a share of a name's rows; it is no shadow of the name any more.

    Args:
        weight: the share, above 0 and below 1.

    Raises:
        ExpertError: nobody serves the name, or the expert is its stable version.
        UsageError: the weight is out of range.
    """
    if not 0 < weight < 1:
        raise UsageError(f"`weight`: expected a share above 0 and below 1, found {weight:g}")
    digest = served.digest

    def edit(manifest: Manifest) -> Manifest:
        route = _other_than_stable(manifest, name, digest)
        shadow = None if route.shadow == digest else route.shadow
        canary = Canary(digest=digest, weight=weight)
        return manifest.routing({name: Route(stable=route.stable, canary=canary, shadow=shadow)})

    return store.publish(
        served, name, action="canary", edit=edit, allow_new_labels=allow_new_labels
    )


def set_shadow(
    store: ExpertStore, name: str, served: Served, *, allow_new_labels: bool = False
) -> Replaced:
    """Let an expert run on a name's rows beside the stable version, without answering.

    Raises:
        ExpertError: nobody serves the name, or the expert is its stable version or its canary.
    """
    digest = served.digest

    def edit(manifest: Manifest) -> Manifest:
        route = _other_than_stable(manifest, name, digest)
        if route.canary is not None and route.canary.digest == digest:
            raise ExpertError(f"{digest[:19]}… is the canary of {name!r} already")
        return manifest.routing(
            {name: Route(stable=route.stable, canary=route.canary, shadow=digest)}
        )

    return store.publish(
        served, name, action="shadow", edit=edit, allow_new_labels=allow_new_labels
    )


def end_canary(
    store: ExpertStore, name: str, *, expected: str | None = None, action: Action = "canary"
) -> Replaced:
    """Let the stable version answer every row again.

    Args:
        expected: leave another canary than this one as it is.
        action: what the history says.
    """

    def edit(route: Route) -> Route:
        if expected is not None and route.canary and route.canary.digest != expected:
            return route
        return Route(stable=route.stable, shadow=route.shadow)

    return store.change(name, _of_route(name, edit), action=action)


def end_shadow(store: ExpertStore, name: str) -> Replaced:
    """End the shadow of a name."""

    def edit(route: Route) -> Route:
        return Route(stable=route.stable, canary=route.canary)

    return store.change(name, _of_route(name, edit), action="shadow")


def rollback(store: ExpertStore, name: str, *, to: str | None = None) -> Replaced:
    """Return to the former stable version; a canary and a shadow end.

    A rollback that is run again changes nothing. `to` goes to any version of the history, and
    brings a name back that was taken out.

    Args:
        to: a digest, or its beginning.

    Raises:
        ExpertError: there is no such version, or it is damaged.
    """
    check_name(name)

    def edit(manifest: Manifest) -> Manifest:
        current = manifest.routes.get(name)
        changes = changes_of(store.folder, name, manifest)
        if current is None and not changes:
            route_of(manifest, name)
        stable = None if current is None else current.stable
        target = _target(changes, stable, name) if to is None else _named(changes, to, name)
        if target != stable:
            store.load(target)
        return manifest.routing({name: Route(stable=target)})

    return store.change(name, edit, action="rollback")


def remove(store: ExpertStore, name: str) -> Replaced:
    """Serve a name no more. Its versions stay until `gc`, and `rollback` brings the name back.

    Raises:
        ExpertError: the store never had the name.
    """
    check_name(name)

    def edit(manifest: Manifest) -> Manifest:
        if name not in manifest.aliases and not changes_of(store.folder, name, manifest):
            route_of(manifest, name)
        return manifest.routing({name: None})

    return store.change(name, edit, action="remove")


def verify(store: ExpertStore, *, keep: int = KEEP) -> list[Checked]:
    """Read every version again that a route names or that a rollback can reach.

    Args:
        keep: former stable versions of each name.

    Raises:
        ServingError: the manifest or a history is damaged.
    """
    manifest = store.manifest()
    names: dict[str, list[str]] = {}
    for name, route in manifest.routes.items():
        for role, digest in route.digests.items():
            names.setdefault(digest, []).append(_label(name, role))
    for digest in sorted(window(store, manifest, keep=keep) - names.keys()):
        names[digest] = ["former"]
    return [Checked(digest, tuple(named), _fault(store, digest)) for digest, named in names.items()]


def _label(name: str, role: Role) -> str:
    return name if role == "stable" else f"{name}@{role}"


def _fault(store: ExpertStore, digest: str) -> str:
    try:
        store.load(digest)
    except ExpertError as error:
        return str(error)
    return ""


def _of_route(name: str, edit: Callable[[Route], Route]) -> Callable[[Manifest], Manifest]:
    def whole(manifest: Manifest) -> Manifest:
        return manifest.routing({name: edit(route_of(manifest, name))})

    return whole


def _other_than_stable(manifest: Manifest, name: str, digest: str) -> Route:
    route = route_of(manifest, name)
    if route.stable == digest:
        raise ExpertError(
            f"{digest[:19]}… is the stable version of {name!r} already; give another expert"
        )
    return route


def _target(changes: tuple[Change, ...], stable: str | None, name: str) -> str:
    """Where a rollback without `to` leads; the stable version itself after a rollback."""
    last = next((one for one in reversed(changes) if one.is_of_stable), None)
    undone = last is not None and last.action == "rollback"
    if undone and stable is not None:
        return stable
    former = stable_versions(changes, stable)
    if stable is not None:
        former.pop()
    if not former:
        raise ExpertError(f"{name!r} has no former version; see pidep experts history {name}")
    return former[-1]


def _named(changes: tuple[Change, ...], to: str, name: str) -> str:
    """The one version of a history whose digest begins so."""
    routes = [route for one in changes for route in (one.before, one.after) if route is not None]
    known = dict.fromkeys(digest for route in routes for digest in route.digests.values())
    wanted = to if to.startswith("sha256:") else f"sha256:{to}"
    found = [digest for digest in known if digest.startswith(wanted)]
    if len(found) != 1:
        raise ExpertError(
            f"`to={to}`: {len(found) or 'no'} versions in the history of {name!r} begin so; see "
            f"pidep experts history {name}"
        )
    return found[0]
