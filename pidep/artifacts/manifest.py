"""The store's `manifest.json`: which version each served name means.

    {"schema": 1, "generation": 7, "aliases": {"movie": "sha256:…"}}

The counter is called `revision` in code, and `generation` in the file. Processes of different
releases share one store: a running server of an older release follows what a newer command line
publishes, and it knows the key `generation` only. Both keys are read, so a later release can
write the other one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AliasChoices, Field, StringConstraints

from pidep.artifacts.names import MANIFEST
from pidep.artifacts.record import Record, read_record, write_record

__all__ = ["Manifest"]

Alias = Annotated[str, StringConstraints(pattern=r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,127}\z")]
"""A name that can be a folder's: no separator, no leading dot."""


class Manifest(Record):
    """One state of the store."""

    schema_version: Literal[1] = Field(default=1, alias="schema")
    revision: int = Field(
        ge=0,
        validation_alias=AliasChoices("revision", "generation"),
        serialization_alias="generation",
    )
    """Counts the changes. A writer compares it with the one it has read."""
    aliases: dict[Alias, str]
    """Served name to the digest of its version."""

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

    def naming(self, digests: Mapping[str, str | None]) -> Manifest:
        """The next manifest, with these names and digests; this one where nothing changes.

        A name whose digest is None is taken out.
        """
        named = {**self.aliases, **digests}
        # Sorted, so that equal states are equal bytes, whatever the order of the publications.
        aliases = {name: digest for name, digest in sorted(named.items()) if digest is not None}
        if aliases == self.aliases:
            return self
        # A new revision only for a change: running servers rebuild their experts on each.
        return Manifest(revision=self.revision + 1, aliases=aliases)
