"""Follows the store's manifest and replaces the served experts between batches."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path

from pidep.artifacts.manifest import Manifest
from pidep.errors import PidepError, ServingError
from pidep.runtime.bank import Bank, Residents
from pidep.serving.store import ExpertStore

__all__ = ["Watcher"]

_POLL_S = 0.005
_REREAD_S = 0.5
_log = logging.getLogger(__name__)


class Watcher:
    """Holds `residents`, which each batch reads once; builds their successor beside them."""

    def __init__(self, bank: Bank, store: ExpertStore) -> None:
        self._bank = bank
        self._store = store
        self._stop = threading.Event()
        self._served: Manifest | None = None
        self._refused: Manifest | None = None
        self.residents = Residents()
        # A daemon thread: the process can end even where `stop` was never called.
        self._thread = threading.Thread(target=self._watch, name="pidep-watcher", daemon=True)

    def start(self) -> None:
        """Load what is published now, then follow."""
        self.refresh()
        self._thread.start()

    def stop(self) -> None:
        """Stop following; idempotent."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5)

    def refresh(self) -> None:
        """Serve the current manifest. If that fails, the old experts go on serving."""
        manifest: Manifest | None = None
        try:
            manifest = self._store.manifest()
            self._require_present(manifest)
            # A refused manifest is not tried again: its versions are immutable, so it fails again.
            if manifest in (self._served, self._refused):
                return
            old = self.residents
            experts = {
                name: old.experts[name]
                if old.digests.get(name) == digest
                else self._store.load(digest)
                for name, digest in manifest.aliases.items()
            }
            # One assignment: a batch has read the old reference or reads the new one.
            self.residents = self._bank.build(experts, old)
            self._served, self._refused = manifest, None
            _log.info("serving store revision %d: %s", manifest.revision, ", ".join(experts))
        except (PidepError, OSError) as error:
            if manifest is not None:
                self._refused = manifest
            served = "empty" if self._served is None else f"at revision {self._served.revision}"
            _log.error("store kept %s: %s", served, error)

    def _require_present(self, manifest: Manifest) -> None:
        """Tell a lost manifest, which reads as empty, from one that names nobody on purpose."""
        served = -1 if self._served is None else self._served.revision
        if manifest.revision < served and not manifest.aliases:
            raise ServingError(f"{self._store.manifest_path}: is gone; restore it")

    def _watch(self) -> None:
        last, read_at = _stamp(self._store.manifest_path), time.monotonic()
        while not self._stop.wait(_POLL_S):
            now = _stamp(self._store.manifest_path)
            # A frozen or stepped clock can hide a change from the stamp: the content is read
            # now and then, too.
            if now != last or time.monotonic() - read_at > _REREAD_S:
                last, read_at = now, time.monotonic()
                self.refresh()


def _stamp(path: Path) -> tuple[int, ...]:
    """Changes when the file is replaced; empty where there is none."""
    try:
        stat = path.stat()
    except OSError:
        return ()
    return (stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size)
