"""The store's `manifest.json`: which versions each served name means.

    {"schema": 1, "generation": 7, "aliases": {"movie": "sha256:…"}}

    {"schema": 2, "generation": 8, "aliases": {"movie": "sha256:…"},
     "canaries": {"movie": {"digest": "sha256:…", "weight": 0.1}}, "shadows": {"movie": "sha256:…"}}

The counter is called `revision` in code, and `generation` in the file. Processes of different
releases share one store: a running server of an older release follows what a newer command line
publishes, and it knows the key `generation` only. Both keys are read, so a later release can
write the other one.

Schema 2 is written only while a name has a canary or a shadow. An older server refuses it, says so,
and goes on with the versions that it serves. Without a canary and a shadow the file is one of
schema 1, which every release follows.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, Field, StringConstraints, model_validator

from pidep.artifacts.names import MANIFEST
from pidep.artifacts.record import Record, read_record, write_record

__all__ = ["Alias", "Canary", "Manifest", "Role", "Route", "route_json"]

Alias = Annotated[str, StringConstraints(pattern=r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,127}\z")]
"""A name that can be a folder's: no separator, no leading dot."""
Role = Literal["stable", "canary", "shadow"]


class Canary(Record):
    """A candidate that answers a share of a name's rows."""

    digest: str
    weight: float = Field(gt=0, lt=1)
    """The share."""


class Route(Record):
    """What a served name means."""

    stable: str
    """Digest of the version that answers."""
    canary: Canary | None = None
    """The candidate that answers some rows in its place."""
    shadow: str | None = None
    """Digest of the candidate that runs on the same rows; its answers are only compared."""

    @property
    def digests(self) -> dict[Role, str]:
        """The versions that the route names."""
        found: dict[Role, str] = {"stable": self.stable}
        if self.canary is not None:
            found["canary"] = self.canary.digest
        if self.shadow is not None:
            found["shadow"] = self.shadow
        return found

    def with_stable(self, digest: str) -> Route:
        """The route with another stable version, which is a candidate no more."""
        canary, shadow = self.canary, self.shadow
        return Route(
            stable=digest,
            canary=None if canary is None or canary.digest == digest else canary,
            shadow=None if shadow == digest else shadow,
        )


class Manifest(Record):
    """One state of the store."""

    schema_version: Literal[1, 2] = Field(default=1, alias="schema")
    revision: int = Field(
        ge=0,
        validation_alias=AliasChoices("revision", "generation"),
        serialization_alias="generation",
    )
    """Counts the changes. A writer compares it with the one it has read."""
    aliases: dict[Alias, str]
    """Served name to the digest of its stable version."""
    canaries: dict[Alias, Canary] | None = None
    """Name to its canary, where it has one."""
    shadows: dict[Alias, str] | None = None
    """Name to the digest of its shadow, where it has one."""

    @model_validator(mode="after")
    def _candidates_need_schema_2_and_a_stable_version(self) -> Manifest:
        candidates = {**(self.canaries or {}), **(self.shadows or {})}
        if candidates and self.schema_version == 1:
            raise ValueError("schema 1 has no canaries and no shadows")
        if unknown := candidates.keys() - self.aliases.keys():
            raise ValueError(f"{min(unknown)!r} has a candidate and no stable version")
        return self

    @classmethod
    def of(cls, revision: int, routes: Mapping[str, Route]) -> Manifest:
        """The manifest of some routes, of the oldest schema that can say it."""
        # Sorted, so that equal states are equal bytes, whatever the order of the publications.
        ordered = sorted(routes.items())
        canaries = {name: one.canary for name, one in ordered if one.canary is not None}
        shadows = {name: one.shadow for name, one in ordered if one.shadow is not None}
        return cls(
            schema=2 if canaries or shadows else 1,
            revision=revision,
            aliases={name: one.stable for name, one in ordered},
            canaries=canaries or None,
            shadows=shadows or None,
        )

    @classmethod
    def read(cls, store: Path) -> Manifest:
        """The manifest of a store's folder; an absent one is empty.

        Raises:
            ServingError: it is damaged.
        """
        path = store / MANIFEST
        try:
            return read_record(path, cls, fault="damaged manifest", remedy="restore it")
        except FileNotFoundError:
            return cls(revision=0, aliases={})

    def write(self, store: Path) -> None:
        """Replace the store's manifest in one step."""
        write_record(store / MANIFEST, self)

    @cached_property
    def routes(self) -> Mapping[str, Route]:
        """Served name to what it means. Made once: a store may have thousands of names."""
        canaries, shadows = self.canaries or {}, self.shadows or {}
        return {
            name: Route(stable=digest, canary=canaries.get(name), shadow=shadows.get(name))
            for name, digest in self.aliases.items()
        }

    @property
    def named(self) -> set[str]:
        """The digests of all versions that a route names."""
        canaries = {one.digest for one in (self.canaries or {}).values()}
        return {*self.aliases.values(), *canaries, *(self.shadows or {}).values()}

    def naming(self, digests: Mapping[str, str | None]) -> Manifest:
        """The next manifest, with these names and stable digests; this one where nothing changes.

        A name whose digest is None is taken out.
        """
        old = self.routes
        return self.routing(
            {
                name: None
                if digest is None
                else old[name].with_stable(digest)
                if name in old
                else Route(stable=digest)
                for name, digest in digests.items()
            }
        )

    def routing(self, routes: Mapping[str, Route | None]) -> Manifest:
        """As `naming`, with whole routes."""
        old = self.routes
        new = {name: one for name, one in {**old, **routes}.items() if one is not None}
        # A new revision only for a change: running servers rebuild their experts on each.
        return self if new == old else Manifest.of(self.revision + 1, new)


def route_json(route: Route | None) -> dict[str, Any] | None:
    """For `--json` and the server's status."""
    return None if route is None else route.model_dump(mode="json")
