"""Follows the store's manifest and replaces the served experts between batches."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pidep.artifacts.manifest import Manifest
from pidep.errors import ServingError
from pidep.runtime.bank import Bank, Resident, Residents
from pidep.serving.refusals import Refusals, path_stamp
from pidep.serving.rollout import Rollout, rollouts_of, versions_of
from pidep.serving.store import ExpertStore

__all__ = ["HUNG_S", "Serving", "Watcher"]

_POLL_S = 0.005
_REREAD_S = 0.5
HUNG_S = 30.0
"""A watcher that is silent for longer counts as hung. Loading one expert takes far less."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Serving:
    """What one batch may use. It is never changed: a change of the store makes the next one."""

    residents: Residents = field(default_factory=Residents)
    """Stable versions under their names; candidates under `film@canary` and `film@shadow`."""
    rollouts: Mapping[str, Rollout] = field(default_factory=dict)
    """The names that have a candidate."""


class Watcher:
    """Holds `serving`, which each batch reads once; builds its successor beside it.

    Each name is served for itself. A version that cannot be loaded leaves the name's old version
    serving, or the name unserved, and no other name is touched.
    """

    def __init__(self, bank: Bank, store: ExpertStore) -> None:
        self._bank = bank
        self._store = store
        self._stop = threading.Event()
        self._manifest: Manifest | None = None
        self._refusals = Refusals(store)
        self._fault = ""
        self._beat = time.monotonic()
        self.serving = Serving(bank.serving({}))
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

    @property
    def residents(self) -> Residents:
        """The experts that are served."""
        return self.serving.residents

    @property
    def is_alive(self) -> bool:
        """Whether the store is being followed: the thread runs, and its last look is not old."""
        return self._thread.is_alive() and self.silent_s < HUNG_S

    @property
    def silent_s(self) -> float:
        """Seconds since the watcher last gave a sign of life."""
        return time.monotonic() - self._beat

    def status(self) -> dict[str, Any]:
        """What is served and what is wrong, as JSON."""
        return {
            "ready": self.is_alive,
            "silent_s": round(self.silent_s, 3),
            "revision": None if self._manifest is None else self._manifest.revision,
            "served": self.residents.digests,
            "refused": self._refusals.reasons(),
            "fault": self._fault,
        }

    def refresh(self) -> None:
        """Serve the current manifest. If it cannot be read, the old experts go on serving."""
        self._beat = time.monotonic()
        try:
            manifest = self._store.manifest()
            self._require_present(manifest)
            if manifest != self._manifest or self._refusals.due():
                self._serve(manifest)
            self._fault = ""
        # Everything, also a panic inside a Rust package, which is no Exception: a watcher that
        # died would leave a server that looks well and never swaps again.
        except BaseException as error:
            self._report(error)

    def _serve(self, manifest: Manifest) -> None:
        """Replace the residents by what the manifest names, as far as it can be loaded."""
        old = self.residents
        versions = versions_of(manifest)
        self._refusals.keep(versions)
        fresh: dict[str, Resident] = {}
        for name, digest in versions.items():
            held = old.by_name.get(name)
            if (held is None or held.digest != digest) and not self._refusals.waiting(name):
                self._load(name, digest, into=fresh)
        # A name keeps its old version where the new one is refused. A former candidate would answer
        # rows that nobody meant for it, so a candidate goes.
        kept = {
            name: held
            for name, held in old.by_name.items()
            if name in versions and (name in manifest.aliases or held.digest == versions[name])
        }
        residents = old
        # A retry that fails again changes nothing.
        if fresh or kept.keys() != old.by_name.keys():
            residents = self._probed(kept, fresh, versions)
        residents = replace(residents, refused=self._refusals.reasons())
        # One assignment: a batch has read the old reference or reads the new one.
        self.serving = Serving(residents, rollouts_of(manifest, residents.digests))
        self._manifest = manifest
        if fresh or old.by_name.keys() != residents.by_name.keys():
            names = ", ".join(residents.by_name)
            _log.info("serving store revision %d: %s", manifest.revision, names)

    def _load(self, name: str, digest: str, *, into: dict[str, Resident]) -> None:
        """The version of a name, added to `into` or refused."""
        self._beat = time.monotonic()
        try:
            resident = self._bank.place(self._store.load(digest), digest=digest)
        except BaseException as error:  # as in `refresh`
            self._refusals.add(name, digest, error)
            return
        into[name] = resident

    def _probed(
        self,
        kept: Mapping[str, Resident],
        fresh: dict[str, Resident],
        aliases: Mapping[str, str],
    ) -> Residents:
        """The residents with those fresh experts that answer probe rows. Others leave `fresh`."""
        residents = self._bank.serving({**kept, **fresh})
        self._beat = time.monotonic()
        faults = self._bank.probe(residents, list(fresh))
        for name in list(fresh):
            if name in faults:
                self._refusals.add(name, aliases[name], faults[name])
                del fresh[name]
            else:
                self._refusals.remove(name)
        return self._bank.serving({**kept, **fresh}) if faults else residents

    def _report(self, error: BaseException) -> None:
        """Log a fault of the whole store, once for each new one."""
        fault = " ".join(str(error).split())[:300] or type(error).__name__
        if fault != self._fault:
            served = "empty" if self._manifest is None else f"at revision {self._manifest.revision}"
            _log.error("store kept %s: %s", served, fault)
        self._fault = fault

    def _require_present(self, manifest: Manifest) -> None:
        """Tell a lost manifest, which reads as empty, from one that names nobody on purpose."""
        served = -1 if self._manifest is None else self._manifest.revision
        if manifest.revision < served and not manifest.aliases:
            raise ServingError(f"{self._store.manifest_path}: is gone; restore it")

    def _watch(self) -> None:
        last, read_at = path_stamp(self._store.manifest_path), time.monotonic()
        while not self._stop.wait(_POLL_S):
            self._beat = time.monotonic()
            now = path_stamp(self._store.manifest_path)
            # A frozen or stepped clock can hide a change from the stamp: the content is read
            # now and then, too.
            again = time.monotonic() - read_at > _REREAD_S or self._refusals.due()
            if now != last or again:
                last, read_at = now, time.monotonic()
                self.refresh()
