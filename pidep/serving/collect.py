"""Removes the versions of a store that nothing names any more."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pidep.artifacts.manifest import Manifest
from pidep.artifacts.names import HISTORY, MANIFEST
from pidep.errors import ExpertError, ServingError
from pidep.files.cache_folder import locked
from pidep.serving.history import histories, stable_versions
from pidep.serving.store import ExpertStore

__all__ = ["KEEP", "Collected", "collect_garbage", "window"]

KEEP = 3
"""Former stable versions that each name keeps for a rollback, by default."""
_VERSION = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Collected:
    """What was removed, or would be."""

    removed: tuple[str, ...]
    """Digests."""
    kept: int
    """Versions that stay."""
    freed_bytes: int
    leftovers: int
    """Temporary files and folders of commands that were killed."""

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "removed": list(self.removed),
            "kept": self.kept,
            "freed_bytes": self.freed_bytes,
            "leftovers": self.leftovers,
        }


def collect_garbage(store: ExpertStore, *, keep: int = KEEP, dry_run: bool = False) -> Collected:
    """Remove versions that no route, no rollback and no mixture can need.

    The store is locked meanwhile, so a version that is being published is never seen half named.

    Args:
        keep: former stable versions that stay for each name, also for names taken out.
        dry_run: whether to remove nothing, and only say what would be removed.

    Raises:
        ServingError: the manifest, a history or a mixture is damaged: what it names is not known.
    """
    with locked(store.folder):
        manifest = store.manifest()
        needed = _with_parts(store, manifest.named | window(store, manifest, keep=keep))
        found = {"sha256:" + path.name: path for path in _versions(store)}
        unnamed = {digest: path for digest, path in sorted(found.items()) if digest not in needed}
        leftovers = list(_leftovers(store))
        size = sum(map(_size, [*unnamed.values(), *leftovers]))
        if not dry_run:
            for path in unnamed.values():
                _remove_version(path)
            for path in leftovers:
                _remove(path)
    return Collected(tuple(unnamed), len(found) - len(unnamed), size, len(leftovers))


def window(store: ExpertStore, manifest: Manifest, *, keep: int = KEEP) -> set[str]:
    """The former stable versions that rollbacks can reach, of all names.

    Raises:
        ServingError: a history is damaged.
    """
    found: set[str] = set()
    for name, changes in histories(store.folder, manifest).items():
        current = manifest.aliases.get(name)
        former = [digest for digest in stable_versions(changes, current) if digest != current]
        found |= set(former[-keep:])
    return found


def _with_parts(store: ExpertStore, digests: set[str]) -> set[str]:
    """These versions and the parts of those that are mixtures."""
    found = set(digests)
    for digest in sorted(digests):
        try:
            found |= set(store.references(digest))
        except ExpertError as error:
            raise ServingError(
                f"{error}; its parts are not known, so nothing is removed"
            ) from error
    return found


def _versions(store: ExpertStore) -> Iterator[Path]:
    folder = store.versions
    if folder.is_dir():
        # Whatever else lies there is not pidep's to remove.
        yield from (path for path in folder.iterdir() if _VERSION.fullmatch(path.name))


def _leftovers(store: ExpertStore) -> Iterator[Path]:
    """Temporary files: each writer holds the lock, so none of them is in use."""
    if store.versions.is_dir():
        yield from store.versions.glob(".*")
    yield from store.folder.glob(f".{MANIFEST}.*")
    yield from (store.folder / HISTORY).glob(".*")


def _remove_version(path: Path) -> None:
    # Renamed first: a kill in the middle must not leave half a version under its digest.
    hidden = path.with_name(f".{path.name}.removed")
    os.rename(path, hidden)
    _remove(hidden)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _size(path: Path) -> int:
    inside = path.rglob("*") if path.is_dir() and not path.is_symlink() else [path]
    return sum(one.lstat().st_size for one in inside if not one.is_dir())
