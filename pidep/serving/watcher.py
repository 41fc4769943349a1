"""Follows the store's manifest and replaces the served generation by one reference, between batches. No torch."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path

from pidep.errors import PidepError, ServingError
from pidep.runtime.bank import Bank, Generation
from pidep.serving.store import ExpertStore, Manifest

__all__ = ["Watcher"]

_POLL_S = 0.005
_REREAD_S = 0.5
_log = logging.getLogger(__name__)


class Watcher:
    """Holds `generation`, the one batches take; builds its successor off to the side."""

    def __init__(self, bank: Bank, store: ExpertStore) -> None:
        self._bank = bank
        self._store = store
        self._stop = threading.Event()
        self._served = Manifest(generation=-1)
        self._refused: Manifest | None = None
        self.generation = Generation()
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
        """Serve the current manifest; a manifest that cannot be honoured leaves the old generation serving."""
        manifest: Manifest | None = None
        try:
            manifest = self._store.manifest()
            if manifest.generation < self._served.generation and not manifest.aliases:
                raise ServingError(f"{self._store.manifest_path}: is gone; restore it")
            if manifest in (self._served, self._refused):
                return
            old = self.generation
            experts = {
                name: old.experts[name] if old.digests.get(name) == digest else self._store.load(digest)
                for name, digest in manifest.aliases.items()
            }
            self.generation = self._bank.build(experts, old)
            self._served, self._refused = manifest, None
            _log.info("serving store generation %d: %s", manifest.generation, ", ".join(experts))
        except (PidepError, OSError) as error:
            if manifest is not None:
                self._refused = manifest
            _log.error("store kept at generation %d: %s", self._served.generation, error)

    def _watch(self) -> None:
        last, read_at = _stamp(self._store.manifest_path), time.monotonic()
        while not self._stop.wait(_POLL_S):
            now = _stamp(self._store.manifest_path)
            # a frozen or stepped clock can hide a change from the stamp, so the content is read now and then too
            if now != last or time.monotonic() - read_at > _REREAD_S:
                last, read_at = now, time.monotonic()
                self.refresh()


def _stamp(path: Path) -> tuple[int, ...]:
    try:
        stat = path.stat()
    except OSError:
        return ()
    return (stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size)
