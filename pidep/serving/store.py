"""The expert store: immutable versions named by digest, and one manifest that names them.

<store>/versions/<64 hex digits>/   an expert folder, or a mixture whose parts are versions, too
<store>/history/<name>.json         `pidep.artifacts.route_history`; the last changes of a name
<store>/manifest.json               `pidep.artifacts.manifest`; written last
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pidep.artifacts.manifest import Manifest, Route, route_json
from pidep.artifacts.names import EXPERT_RECORD, MANIFEST
from pidep.artifacts.route_history import Action
from pidep.errors import ExpertError, ServingError
from pidep.experts.folder import Expert, check_name, read_expert, write_expert
from pidep.experts.mixed import MixedExpert, Served, parts_of
from pidep.experts.mixture_folder import (
    holds_mixture,
    part_digests,
    read_mixture,
    write_mixture_record,
)
from pidep.experts.replacing import Meaning, check_same_meaning
from pidep.experts.validation import require_valid
from pidep.files.atomic_write import atomic_folder
from pidep.files.cache_folder import locked
from pidep.serving.history import recorded

__all__ = ["Edit", "ExpertStore", "Replaced"]

Edit = Callable[[Manifest], Manifest]
"""Makes the next manifest of the current one; gives the same one where nothing changes."""

_VERSIONS = "versions"
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Replaced:
    """A change of one name."""

    alias: str
    before: Route | None
    """None where the name was not served."""
    after: Route | None
    """None where the name was taken out."""
    revision: int
    """Of the manifest that has the route `after`."""

    @property
    def old(self) -> str | None:
        """Digest of the stable version that the name had before."""
        return None if self.before is None else self.before.stable

    @property
    def new(self) -> str:
        """Digest of the stable version that the name has now; empty where it was taken out."""
        return "" if self.after is None else self.after.stable

    @property
    def is_change(self) -> bool:
        """Whether anything changed; False where everything was so already."""
        return self.before != self.after

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "name": self.alias,
            "changed": self.is_change,
            "before": route_json(self.before),
            "after": route_json(self.after),
            "revision": self.revision,
        }


class ExpertStore:
    """Publishing and reading; any number of processes may do both."""

    def __init__(self, folder: Path, *, guard: Edit | None = None) -> None:
        """The store of a folder, which may be new.

        Args:
            guard: is asked before each change, under the lock; may raise.
        """
        self.folder = folder
        self._guard = guard
        self.manifest_path = folder / MANIFEST
        self.versions = folder / _VERSIONS

    def unless_changed(self, name: str) -> ExpertStore:
        """This store, which refuses a change once somebody else has changed the name's route."""
        seen = self.manifest().routes.get(name)

        def guard(manifest: Manifest) -> Manifest:
            found = manifest.routes.get(name)
            if found != seen:
                said = "not served" if found is None else f"{found.stable[:19]}…"
                raise ServingError(
                    f"{self.manifest_path}: another process has changed {name!r} meanwhile, found "
                    f"{said} in revision {manifest.revision}; look, and run the command again"
                )
            return manifest

        return ExpertStore(self.folder, guard=guard)

    def manifest(self) -> Manifest:
        """The current manifest; that of a new store is empty.

        Raises:
            ServingError: it is damaged, or it is gone and versions are still there.
        """
        found = Manifest.read(self.folder)
        # A lost manifest reads as empty. Writing the next one would drop every served name.
        if not found.revision and not self.manifest_path.exists() and self._has_versions():
            raise ServingError(
                f"{self.manifest_path}: is gone, and the versions of its experts are still there; "
                f"restore it, or move {self.versions} away and publish every expert again"
            )
        return found

    def version(self, digest: str) -> Path:
        """Folder of a digest.

        Raises:
            ExpertError: it is no digest.
        """
        # The digest comes from a file that others can write; `../..` would leave the store.
        if not _DIGEST.fullmatch(digest):
            raise ExpertError(
                f"{self.manifest_path}: {digest[:80]!r} is no digest, expected sha256: and 64 hex "
                "digits; publish the expert again"
            )
        return self.versions / digest.removeprefix("sha256:")

    def load(self, digest: str) -> Served:
        """A published expert or mixture, verified.

        Raises:
            ExpertError: it or a part of it is missing or damaged, or has another digest.
        """
        folder = self.version(digest)
        if not holds_mixture(folder):
            return self._load_expert(digest)
        found = read_mixture(folder, part=self._load_expert)
        if found.digest != digest:
            raise ExpertError(
                f"{folder}: holds {found.digest}, expected {digest}; publish it again"
            )
        return found

    def references(self, digest: str) -> tuple[str, ...]:
        """The versions that a version needs: the parts of a mixture.

        Raises:
            ExpertError: the record of a mixture is damaged.
        """
        return part_digests(self.version(digest))

    def _load_expert(self, digest: str) -> Expert:
        return read_expert(self.version(digest), expected=digest)

    def published(self, manifest: Manifest | None = None) -> dict[str, Served]:
        """Every expert that a manifest names and that can be loaded, by name; others are logged.

        Args:
            manifest: the current one when absent.

        Raises:
            ServingError: the manifest is damaged.
        """
        found: dict[str, Served] = {}
        for name, digest in (manifest or self.manifest()).aliases.items():
            try:
                found[name] = self.load(digest)
            except ExpertError as error:
                # One bad version must not keep every other expert from being exported.
                _log.warning("%s: is left out: %s", name, error, extra={"expert": name})
        return found

    def publish(
        self,
        expert: Served,
        alias: str,
        *,
        allow_new_labels: bool = False,
        action: Action = "publish",
        edit: Edit | None = None,
    ) -> Replaced:
        """Serve the expert under a name; what changed, so that it can be undone.

        Publishing the same expert again changes nothing. A damaged version is written anew.

        Args:
            allow_new_labels: whether the name may get other labels or another template.
            action: what the history says.
            edit: names the version in another way than as the stable one.
        """
        staged = self.staged(
            {alias: expert}, allow_new_labels=allow_new_labels, action=action, edit=edit
        )
        with staged as commit:
            before, after = commit()
        return Replaced(alias, before.routes.get(alias), after.routes.get(alias), after.revision)

    def change(self, alias: str, edit: Edit, *, action: Action) -> Replaced:
        """Change what a name means, without a new version; what changed, as `publish`.

        Raises:
            ServingError: the manifest is damaged or gone; and what `edit` raises.
        """
        with locked(self.folder):
            before = self._guarded()
            after = self._replaced(before, edit(before), action)
        return Replaced(alias, before.routes.get(alias), after.routes.get(alias), after.revision)

    def put_back(self, done: Replaced) -> bool:
        """Undo a change, unless the name has been changed again since.

        Returns:
            whether the name means what it meant before.
        """
        if not done.is_change:
            return True
        with locked(self.folder):
            now = self.manifest()
            # Compare and set: another process may have replaced the version meanwhile, and its
            # change must not be lost.
            if now.revision < done.revision or now.routes.get(done.alias) != done.after:
                return False
            self._replaced(now, now.routing({done.alias: done.before}), "undo")
        return True

    def _guarded(self) -> Manifest:
        """The current manifest, where the guard lets it be changed."""
        manifest = self.manifest()
        return manifest if self._guard is None else self._guard(manifest)

    def _replaced(self, before: Manifest, after: Manifest, action: Action) -> Manifest:
        """Write the next manifest behind its history; gives the manifest. Needs the lock."""
        if after != before:
            with recorded(self.folder, before, after, action):
                after.write(self.folder)
        return after

    def _require_same_meaning(self, manifest: Manifest, experts: Mapping[str, Served]) -> None:
        for name, expert in experts.items():
            digest, new = manifest.aliases.get(name), Meaning.of(expert)
            if digest is None:
                continue
            # The record alone mostly says enough, and is read in a tenth of the time.
            with suppress(ExpertError):
                check_same_meaning(name, Meaning.recorded(self.version(digest)), new)
                continue
            try:
                old = self.load(digest)
            except ExpertError:
                continue  # a damaged version must be replaceable
            check_same_meaning(name, Meaning.of(old), new)

    @contextmanager
    def staged(
        self,
        experts: Mapping[str, Served],
        *,
        since: Manifest | None = None,
        allow_new_labels: bool = False,
        action: Action = "publish",
        edit: Edit | None = None,
    ) -> Iterator[Callable[[], tuple[Manifest, Manifest]]]:
        """Write the experts' versions; gives the function that lets the manifest name them.

        That function returns the manifests before and after. The store is locked meanwhile. If the
        block ends with an error, or without a call of that function, new versions are removed
        again.

        Args:
            experts: served name to expert.
            since: refuse to work on a manifest that is newer than this one.
            allow_new_labels: whether a name may get other labels or another template.
            action: what the history says.
            edit: makes the next manifest; without it, the experts become the stable versions.

        Raises:
            ExpertError: a name that cannot be a folder's, an expert that cannot answer, or one that
                would change what a served name means.
            ServingError: the manifest is damaged or gone, or another process has changed it.
        """
        for expert in experts.values():
            if not isinstance(expert, MixedExpert):  # a mixture is checked when it is made
                require_valid(expert)
        digests = {check_name(name): expert.digest for name, expert in experts.items()}
        # One writer at a time: the manifest is read, changed and replaced.
        with locked(self.folder):
            before = self._guarded()
            if since is not None and since.revision != before.revision:
                raise ServingError(
                    f"{self.manifest_path}: changed meanwhile, expected revision {since.revision}, "
                    f"found {before.revision}; run the command again"
                )
            if not allow_new_labels:
                self._require_same_meaning(before, experts)
            # Versions that existed before may be named by a running server, so only new ones are
            # removed.
            needed = [digest for expert in experts.values() for digest in _digests(expert)]
            new = [digest for digest in needed if not self.version(digest).exists()]

            def commit() -> tuple[Manifest, Manifest]:
                after = before.naming(digests) if edit is None else edit(before)
                return before, self._replaced(before, after, action)

            is_new = not self.manifest_path.exists()
            if is_new:
                # First of all: after a crash, versions without a manifest look like a lost one.
                before.write(self.folder)
            try:
                for expert in experts.values():
                    self._write(expert)
                yield commit
            finally:
                self._remove_unnamed(new)
                if is_new and not self.manifest().revision:
                    self.manifest_path.unlink()

    def _write(self, expert: Served) -> None:
        """The version, read back; those of a mixture's parts come first."""
        if isinstance(expert, MixedExpert):
            for part in parts_of(expert):
                self._write(part)
        digest = expert.digest
        try:
            self.load(digest)
        except ExpertError:
            place = self.version(digest)
            # `write_expert` would refuse to replace something that is no expert.
            if os.path.lexists(place) and not (place / EXPERT_RECORD).is_file():
                _discard(place)
            if isinstance(expert, MixedExpert):
                with atomic_folder(place) as temporary:
                    write_mixture_record(expert, temporary)
            else:
                write_expert(expert, place)
            # Read back before the manifest names it: the version must be readable, not only
            # written.
            self.load(digest)

    def _has_versions(self) -> bool:
        try:
            names = os.listdir(self.versions)
        except OSError:
            return False
        # A version that is being written has a name with a leading dot.
        return any(not name.startswith(".") for name in names)

    def _remove_unnamed(self, digests: list[str]) -> None:
        """Remove those versions that the manifest does not name, and that no mixture needs."""
        if not digests:
            return
        named = self.manifest().named
        if unnamed := [digest for digest in digests if digest not in named]:
            # Only now: it looks at every version that a name means.
            needed = self._needed(named)
            for digest in unnamed:
                if digest not in needed:
                    shutil.rmtree(self.version(digest), ignore_errors=True)

    def _needed(self, digests: Iterable[str]) -> set[str]:
        """These versions, and the parts of those that are mixtures."""
        needed = set(digests)
        for digest in tuple(needed):
            # A damaged record names nothing; it is reported where it is loaded.
            with suppress(ExpertError):
                needed |= set(self.references(digest))
        return needed


def _digests(served: Served) -> list[str]:
    """The versions that publishing writes."""
    parts = parts_of(served) if isinstance(served, MixedExpert) else ()
    return [*(part.digest for part in parts), served.digest]


def _discard(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
