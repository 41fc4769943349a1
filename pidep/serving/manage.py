"""`pidep experts` as functions: a change of the store of a repository, confirmed by its servers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pidep.artifacts.bank import BankRecord
from pidep.artifacts.manifest import route_json
from pidep.artifacts.names import BANK, VERSION
from pidep.errors import UsageError
from pidep.experts.mixed import Served
from pidep.experts.mixture_folder import read_served
from pidep.experts.resolve import resolve_served_folder
from pidep.runtime.fit import check_served
from pidep.serving.auto_rollout import Evidence, Rules, watch_canary
from pidep.serving.history import changes_of
from pidep.serving.instances import Instances, confirmed
from pidep.serving.routes import route_of, set_canary
from pidep.serving.store import ExpertStore, Replaced

__all__ = ["Place", "change", "describe", "history", "read_run", "roll_out", "routes_of", "show"]


@dataclass(frozen=True)
class Place:
    """The store that a command changes, and the servers that must follow."""

    repo: Path
    """Model repository whose bank names the store."""
    urls: tuple[str, ...] = ()
    """gRPC addresses, host:port; without one, the store alone is changed."""
    timeout_s: float = 10.0

    def store(self, served: Served | None = None) -> ExpertStore:
        """The store.

        Args:
            served: what the repository's bank must be able to hold.

        Raises:
            ServingError: the repository has no bank.
            ExpertError: the bank cannot hold the expert.
        """
        version = self.repo / BANK / VERSION
        record = BankRecord.read(version)
        if served is not None:
            check_served(record, served)
        return ExpertStore(record.store(version))


def read_run(place: Place, run: str) -> Served:
    """The expert or the mixture of a run folder, or a version of the store by its digest."""
    if run.startswith("sha256:"):
        return place.store().load(run)
    return read_served(resolve_served_folder(Path(run)))


def change(
    place: Place,
    name: str,
    edit: Callable[[ExpertStore], Replaced],
    *,
    served: Served | None = None,
) -> Replaced:
    """Change a name's route; with servers, return when each of them answers by it.

    Args:
        edit: one of `pidep.serving.routes`.
        served: a new version, which the bank must be able to hold.

    Raises:
        ServingError: servers did not follow, and the former route is back; or another process has
            changed the name meanwhile.
    """
    store = place.store(served).unless_changed(name)
    if not place.urls:
        return edit(store)
    with Instances(place.urls, timeout_s=place.timeout_s) as instances:
        return confirmed(store, name, lambda: edit(store), instances=instances)


def roll_out(
    place: Place,
    name: str,
    served: Served | None,
    *,
    weight: float,
    rules: Rules,
    allow_new_labels: bool = False,
    progress: Callable[[Evidence], None] = lambda _: None,
) -> Replaced:
    """Start a canary, watch it on the servers, and promote it or take it back.

    Args:
        served: the candidate; None goes on watching the canary that the name has.

    Raises:
        ServingError: the canary was taken back, and why.
    """
    if not place.urls:
        raise UsageError("`auto`: needs the servers that answer; give `url` for each of them")
    store = place.store(served)
    manifest = store.manifest()
    route = route_of(manifest, name)
    # The command again, after it has promoted the canary.
    if served is not None and route.stable == served.digest:
        return Replaced(name, route, route, manifest.revision)
    with Instances(place.urls, timeout_s=place.timeout_s) as instances:
        if served is not None:
            candidate = served

            def start() -> Replaced:
                return set_canary(
                    store, name, candidate, weight=weight, allow_new_labels=allow_new_labels
                )

            digest = candidate.digest
            confirmed(store, name, start, instances=instances)
        elif route.canary is None:
            raise UsageError(f"{name!r} has no canary to watch; give the run of one")
        else:
            digest = route.canary.digest
        return watch_canary(
            store, name, digest, instances=instances, rules=rules, progress=progress
        )


def routes_of(place: Place) -> dict[str, Any]:
    """The revision and every route, for `--json`."""
    manifest = place.store().manifest()
    routes = {name: route_json(route) for name, route in manifest.routes.items()}
    return {"revision": manifest.revision, "experts": routes}


def show(place: Place, name: str) -> dict[str, Any]:
    """A name's route and former versions, and what each server says about the name.

    Raises:
        ExpertError: nobody serves the name.
        ServingError: a server does not answer.
    """
    store = place.store()
    manifest = store.manifest()
    route = route_of(manifest, name)
    found: dict[str, Any] = {
        "name": name,
        "revision": manifest.revision,
        **(route_json(route) or {}),
    }
    if place.urls:
        with Instances(place.urls, timeout_s=place.timeout_s) as instances:
            found["servers"] = {
                url: {
                    "revision": status["revision"],
                    "served": _own(status["served"], name),
                    "refused": _own(status["refused"], name),
                    "counts": status.get("rollouts", {}).get(name, {}),
                }
                for url, status in instances.status().items()
            }
    return found


def history(place: Place, name: str) -> list[dict[str, Any]]:
    """The last changes of a name, newest first.

    Raises:
        ExpertError: the store never had the name.
    """
    store = place.store()
    manifest = store.manifest()
    changes = changes_of(store.folder, name, manifest)
    if not changes:
        route_of(manifest, name)
    return [one.model_dump(mode="json") for one in reversed(changes)]


def describe(route: dict[str, Any] | None) -> str:
    """A route in words.

    >>> describe({"stable": "sha256:0123456789abcdef", "canary": None, "shadow": None})
    'sha256:0123456789ab'
    """
    if route is None:
        return "not served"
    parts = [short(route["stable"])]
    if route.get("canary"):
        canary = route["canary"]
        parts.append(f"canary {short(canary['digest'])} {100 * canary['weight']:g} %")
    if route.get("shadow"):
        parts.append(f"shadow {short(route['shadow'])}")
    return ", ".join(parts)


def short(digest: str) -> str:
    """The beginning of a digest, which `rollback` understands."""
    return digest[:19]


def _own(values: dict[str, Any], name: str) -> dict[str, Any]:
    """What is said about a name and its candidates."""
    return {key: value for key, value in values.items() if key.partition("@")[0] == name}
