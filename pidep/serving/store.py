"""The expert store: immutable versions named by digest, and one manifest that names them.

<store>/versions/<64 hex digits>/   an expert folder
<store>/manifest.json               `pidep.artifacts.manifest`; written last
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pidep.artifacts.manifest import Manifest
from pidep.artifacts.names import MANIFEST
from pidep.errors import ExpertError, ServingError
from pidep.experts.folder import Expert, check_name, read_expert, write_expert
from pidep.experts.validation import require_valid
from pidep.files.cache_folder import locked

__all__ = ["ExpertStore"]


class ExpertStore:
    """Publishing and reading; any number of processes may do both."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest_path = folder / MANIFEST

    def manifest(self) -> Manifest:
        """The current manifest; an absent one is empty.

        Raises:
            ServingError: it is damaged.
        """
        return Manifest.read(self.folder)

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
            raise ExpertError(
                f"{self.version(digest)}: holds {expert.digest}, expected {digest}; "
                "publish it again"
            )
        return expert

    def published(self, manifest: Manifest | None = None) -> dict[str, Expert]:
        """Every expert that a manifest names, by name.

        Args:
            manifest: the current one when absent.

        Raises:
            ServingError: the manifest is damaged.
            ExpertError: a version is missing or damaged.
        """
        aliases = (manifest or self.manifest()).aliases
        return {name: self.load(digest) for name, digest in aliases.items()}

    def publish(self, expert: Expert, alias: str) -> str:
        """Serve the expert under a name; its digest.

        Publishing the same expert again changes nothing. A damaged version is written anew.
        """
        with self.staged({alias: expert}) as commit:
            commit()
        return expert.digest

    @contextmanager
    def staged(
        self, experts: Mapping[str, Expert], *, since: Manifest | None = None
    ) -> Iterator[Callable[[], Manifest]]:
        """Write the experts' versions; gives the function that lets the manifest name them.

        The store is locked meanwhile. If the block ends with an error, or without a call of that
        function, new versions are removed again.

        Args:
            experts: served name to expert.
            since: refuse to work on a manifest that is newer than this one.

        Raises:
            ExpertError: a name that cannot be a folder's, or an expert that cannot answer.
            ServingError: the manifest is damaged, or another process has changed it.
        """
        for expert in experts.values():
            require_valid(expert)
        digests = {check_name(name): expert.digest for name, expert in experts.items()}
        # One writer at a time: the manifest is read, changed and replaced.
        with locked(self.folder):
            before = self.manifest()
            if since is not None and since.revision != before.revision:
                raise ServingError(
                    f"{self.manifest_path}: changed meanwhile, expected revision {since.revision}, "
                    f"found {before.revision}; run the command again"
                )
            # Versions that existed before may be named by a running server, so only new ones are
            # removed.
            new = [digest for digest in digests.values() if not self.version(digest).exists()]

            def commit() -> Manifest:
                after = before.naming(digests)
                if after != before:
                    after.write(self.folder)
                return after

            try:
                for expert in experts.values():
                    self._write(expert)
                yield commit
            finally:
                self._remove_unnamed(new)

    def _write(self, expert: Expert) -> None:
        """The expert's version, read back."""
        try:
            self.load(expert.digest)
        except ExpertError:
            write_expert(expert, self.version(expert.digest))
            # Read back before the manifest names it: the version must be readable, not only
            # written.
            self.load(expert.digest)

    def _remove_unnamed(self, digests: list[str]) -> None:
        """Remove those versions that the manifest does not name."""
        named = set(self.manifest().aliases.values())
        for digest in digests:
            if digest not in named:
                shutil.rmtree(self.version(digest), ignore_errors=True)
