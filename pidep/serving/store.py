"""The expert store: immutable versions named by digest, aliases in one manifest that is written last.

<store>/versions/<64 hex digits>/   an expert folder
<store>/manifest.json               {"schema": 1, "generation": N, "aliases": {"movie": "sha256:…"}}
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pidep.errors import ExpertError, ServingError
from pidep.experts.folder import Expert, check_name, read_expert, write_expert
from pidep.files.atomic_write import write_json

__all__ = ["ExpertStore", "Manifest"]


@dataclass(frozen=True)
class Manifest:
    """Which digest each alias means."""

    generation: int = 0
    aliases: dict[str, str] = field(default_factory=dict)


class ExpertStore:
    """Publishing and reading; any number of processes may do both."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest_path = folder / "manifest.json"

    def manifest(self) -> Manifest:
        """The current manifest; an absent one is empty.

        Raises:
            ServingError: it is damaged.
        """
        try:
            record = json.loads(self.manifest_path.read_text(encoding="utf-8"))
            return Manifest(int(record["generation"]), {check_name(name): str(digest) for name, digest in record["aliases"].items()})
        except FileNotFoundError:
            return Manifest()
        except (OSError, ValueError, KeyError, TypeError, AttributeError, ExpertError) as error:
            raise ServingError(f"{self.manifest_path}: damaged manifest ({error}); restore it") from error

    def version(self, digest: str) -> Path:
        """Folder of a digest."""
        return self.folder / "versions" / digest.removeprefix("sha256:")

    def load(self, digest: str) -> Expert:
        """A published expert, verified.

        Raises:
            ExpertError: missing or damaged, or its content has another digest.
        """
        expert = read_expert(self.version(digest))
        if expert.digest != digest:
            raise ExpertError(f"{self.version(digest)}: holds {expert.digest}, expected {digest}; publish it again")
        return expert

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / ".lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def publish(self, expert: Expert, alias: str) -> str:
        """Store the expert and point `alias` at it; the version is whole on disk before the manifest names it.

        Publishing the same expert again changes nothing. A damaged version of the same digest is written anew.
        """
        check_name(alias)
        digest = expert.digest
        with self._locked():
            folder = self.version(digest)
            try:
                self.load(digest)
            except ExpertError:
                write_expert(expert, folder)
                self.load(digest)
            now = self.manifest()
            if now.aliases.get(alias) != digest:
                aliases = {**now.aliases, alias: digest}
                write_json(self.manifest_path, {"schema": 1, "generation": now.generation + 1, "aliases": dict(sorted(aliases.items()))})
        return digest
