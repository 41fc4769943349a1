"""Follows the store's manifest and replaces the served experts between batches.

Where the bank has a bound in bytes, names that do not fit are served cold: known, and not in
memory. `warm` brings them in, and those that were used longest ago leave.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from queue import Empty, SimpleQueue
from typing import Any

from pidep.artifacts.manifest import Manifest
from pidep.errors import AnswerError, ServingError
from pidep.experts.mixed import parts_of
from pidep.runtime.arena import NoRoomError
from pidep.runtime.bank import Bank, Resident, Residents
from pidep.serving.recency import Recency
from pidep.serving.refusals import Refusals, path_stamp
from pidep.serving.rollout import Rollout, pinned, rolled_out_of, rollouts_of, versions_of
from pidep.serving.store import ExpertStore

__all__ = ["HUNG_S", "Serving", "Watcher"]

_POLL_S = 0.005
_REREAD_S = 0.5
HUNG_S = 30.0
"""A watcher that is silent for longer counts as hung. Loading one expert takes far less."""
_NAMED = 10
"""Changed names that a line of the log shows."""
_FREE_WITHIN_S = 20.0
"""How long the batches that still hold an evicted expert may take."""
_log = logging.getLogger(__name__)


@dataclass
class Counts:
    """What happened to the residents since the start."""

    swaps: int = 0
    """Times that the names or their versions changed."""
    evictions: int = 0
    """Names that left memory for others."""
    cold_loads: int = 0
    """Names that were loaded because a row asked for them."""


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
        self._recency = Recency()
        self._proven: set[str] = set()
        """Digests that answered the probe rows in this process."""
        self._wanted: SimpleQueue[tuple[Sequence[str], Future[Serving]]] = SimpleQueue()
        self.counts = Counts()
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
    def revision(self) -> int | None:
        """Revision of the manifest that is served; None before the first."""
        return None if self._manifest is None else self._manifest.revision

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
            "revision": self.revision,
            "served": self.residents.digests,
            "cold": len(self.residents.cold),
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

    def use(self, names: Collection[str]) -> None:
        """A batch uses these names: others leave memory before them. Any thread may say so."""
        if self._bank.arena.most is not None:
            self._recency.use(pinned(name) for name in names)

    def warm(self, names: Sequence[str]) -> Serving:
        """What serves these names from memory: the first of them, and as many more as fit beside.

        Those that are still `cold` in it fit only when the others are not needed any more; ask
        again for them. For any thread but the watcher's own. Whoever waits here must hold no
        `Serving`: it would keep the slots that are needed.

        Raises:
            AnswerError: the watcher has stopped, or it hangs.
        """
        found: Future[Serving] = Future()
        self._wanted.put((names, found))
        try:
            return found.result(timeout=_FREE_WITHIN_S + HUNG_S)
        except TimeoutError as error:
            raise AnswerError(f"no expert was loaded for {HUNG_S:.0f} s; try again") from error

    def _warm(self, names: Sequence[str]) -> Serving:
        """As `warm`, on the watcher's thread."""
        # Used now, so that the first of them do not leave for the last.
        self._recency.use(names)
        held = self.residents
        versions = {name: held.cold[name] for name in names if name in held.cold}
        can_wait = any(name in held.by_name for name in names)
        del held  # it would keep the slots of those that leave
        loaded = self._load_some(deque(versions), versions, keep=names, can_wait=can_wait)
        fresh = self._proved(loaded, versions)
        self.counts.cold_loads += len(fresh)
        if versions:
            now = self.serving
            by_name = {**now.residents.by_name, **fresh}
            self._replace(by_name, now.residents.cold, now.rollouts)
        return self.serving

    def _serve(self, manifest: Manifest) -> None:
        """Replace the residents by what the manifest names, as far as it can be loaded."""
        versions, rolled_out = versions_of(manifest), rolled_out_of(manifest)
        before = self.residents.digests
        self._refusals.keep(versions)
        self._recency.forget(versions)
        new = {name for name, digest in versions.items() if before.get(name) != digest}
        new |= rolled_out & self.residents.cold.keys()
        # First those that must not wait for their first row, then in the manifest's order.
        wanted = deque(
            name
            for name in sorted(
                (one for one in versions if one in new), key=lambda one: one not in rolled_out
            )
            if not self._refusals.waiting(name)
        )
        self._serve_some(manifest, versions, wanted, keep=rolled_out)
        # In memory of a bounded size, a revision may name more new versions than fit together. Each
        # must prove itself, so they come in turns.
        while wanted:
            self._serve_some(manifest, versions, wanted, keep=rolled_out)
        self._manifest = manifest
        changed = sorted({name for name, _ in before.items() ^ self.residents.digests.items()})
        if changed:
            self.counts.swaps += 1
            more = f" and {len(changed) - _NAMED} more" if len(changed) > _NAMED else ""
            _log.info(
                "serving store revision %d: %d names; changed: %s%s",
                manifest.revision,
                len(self.residents.digests),
                ", ".join(changed[:_NAMED]),
                more,
                extra={"revision": manifest.revision},
            )

    def _serve_some(
        self,
        manifest: Manifest,
        versions: Mapping[str, str],
        wanted: deque[str],
        *,
        keep: Collection[str],
    ) -> None:
        """Serve the first of the wanted names, and of the others what the manifest still means.

        At the start, those that do not fit wait cold for their first row.
        """
        starts = self._manifest is None
        loaded = self._load_some(wanted, versions, keep=keep, can_wait=starts)
        fresh = self._proved(loaded, versions)
        cold = dict(self.residents.cold)
        if starts:
            cold |= {name: versions[name] for name in wanted}
            wanted.clear()
        now = self.residents.by_name

        def stays(name: str, digest: str) -> bool:
            # A name keeps its old version where the new one is refused. A former candidate would
            # answer rows that nobody meant for it, so a candidate goes.
            return name in manifest.aliases or versions.get(name) == digest

        kept = {name: held for name, held in now.items() if stays(name, held.digest)}
        cold = {name: digest for name, digest in cold.items() if stays(name, digest)}
        by_name = {**kept, **fresh}
        digests = {name: one.digest for name, one in by_name.items()}
        self._replace(by_name, cold, rollouts_of(manifest, digests))

    def _replace(
        self,
        by_name: Mapping[str, Resident],
        cold: Mapping[str, str],
        rollouts: Mapping[str, Rollout],
    ) -> None:
        """Serve these from the next batch on."""
        now = self.residents
        is_same = by_name.keys() == now.by_name.keys() and all(
            one is now.by_name[name] for name, one in by_name.items()
        )
        residents = replace(
            now if is_same else self._bank.serving(by_name),
            refused=self._refusals.reasons(),
            cold={
                name: digest
                for name, digest in cold.items()
                if name not in by_name and not self._refusals.refuses(name, digest)
            },
        )
        # One assignment: a batch has read the old reference or reads the new one.
        self.serving = Serving(residents, rollouts)

    def _load_some(
        self,
        wanted: deque[str],
        versions: Mapping[str, str],
        *,
        keep: Collection[str],
        can_wait: bool = False,
    ) -> dict[str, Resident]:
        """The first of the wanted names, taken from `wanted`: as many as there is room for.

        A version that cannot be loaded is refused.

        Args:
            keep: names that stay in memory.
            can_wait: whether a version without room, be it the first, is left in `wanted`.
        """
        fresh: dict[str, Resident] = {}
        while wanted:
            name = wanted[0]
            self._beat = time.monotonic()
            try:
                fresh[name] = self._placed(versions[name], fresh, keep=keep)
            except BaseException as error:  # as in `refresh`
                if isinstance(error, NoRoomError) and (fresh or can_wait):
                    break
                self._refusals.add(name, versions[name], error)
            wanted.popleft()
        self._recency.use(fresh)
        return fresh

    def _placed(
        self, digest: str, fresh: Mapping[str, Resident], *, keep: Collection[str]
    ) -> Resident:
        """A version in memory. Where that is full, others leave, but at the start nobody does."""
        served = self._store.load(digest)
        try:
            return self._bank.place(served, digest=digest)
        except NoRoomError:
            if self._manifest is None:
                raise
        self._evict(len(parts_of(served)), fresh, keep=keep)
        deadline = time.monotonic() + _FREE_WITHIN_S
        while True:
            try:
                return self._bank.place(served, digest=digest)
            except NoRoomError as error:
                # A batch that began before still holds the evicted ones.
                if time.monotonic() > deadline:
                    raise ServingError(
                        f"no slot was free for {_FREE_WITHIN_S:.0f} s: batches hold the experts "
                        "that should leave; permit more bytes"
                    ) from error
                time.sleep(0.001)

    def _evict(self, needed: int, fresh: Mapping[str, Resident], *, keep: Collection[str]) -> None:
        """Take names out of memory, until as many slots as are needed will be free.

        Raises:
            NoRoomError: those that stay leave too few; nobody was evicted.
        """
        now, most = self.serving, self._bank.arena.most
        assert most is not None, "an arena without a bound has room"
        by_name = now.residents.by_name
        victims = self._recency.victims(
            by_name,
            # Rows of a name with a candidate are answered by both, whenever they come.
            keep={*keep, *(name for name in by_name if name.partition("@")[0] in now.rollouts)},
            held={slot.number for one in fresh.values() for slot in one.slots},
            most=most - needed,
        )
        if victims is None:
            raise NoRoomError(
                f"it takes {needed} of the {most} slots that are permitted in memory, and the "
                "others are in use; permit more bytes"
            )
        cold = {**now.residents.cold, **{name: by_name[name].digest for name in victims}}
        kept = {name: held for name, held in by_name.items() if name not in cold}
        self.counts.evictions += len(victims)
        self._replace(kept, cold, now.rollouts)

    def _proved(
        self, fresh: dict[str, Resident], versions: Mapping[str, str]
    ) -> dict[str, Resident]:
        """Those that answer the probe rows; the others are refused."""
        self._beat = time.monotonic()
        new = [name for name, one in fresh.items() if one.digest not in self._proven]
        faults = self._bank.probe(self._bank.serving(fresh), new) if new else {}
        for name, one in fresh.items():
            if name in faults:
                self._refusals.add(name, versions[name], faults[name])
            else:
                self._refusals.remove(name)
                self._proven.add(one.digest)
        return {name: one for name, one in fresh.items() if name not in faults}

    def _report(self, error: BaseException) -> None:
        """Log a fault of the whole store, once for each new one."""
        fault = " ".join(str(error).split())[:300] or type(error).__name__
        if fault != self._fault:
            served = "empty" if self._manifest is None else f"at revision {self._manifest.revision}"
            _log.error("store kept %s: %s", served, fault, extra={"revision": self.revision})
        self._fault = fault

    def _require_present(self, manifest: Manifest) -> None:
        """Tell a lost manifest, which reads as empty, from one that names nobody on purpose."""
        served = -1 if self._manifest is None else self._manifest.revision
        if manifest.revision < served and not manifest.aliases:
            raise ServingError(f"{self._store.manifest_path}: is gone; restore it")

    def _watch(self) -> None:
        last, read_at = path_stamp(self._store.manifest_path), time.monotonic()
        while not self._stop.is_set():
            self._beat = time.monotonic()
            self._answer_wanted()
            now = path_stamp(self._store.manifest_path)
            # A frozen or stepped clock can hide a change from the stamp: the content is read
            # now and then, too.
            again = time.monotonic() - read_at > _REREAD_S or self._refusals.due()
            if now != last or again:
                last, read_at = now, time.monotonic()
                self.refresh()

    def _answer_wanted(self) -> None:
        """Wait until the next look at the store is due, or until a row needs cold experts."""
        try:
            names, found = self._wanted.get(timeout=_POLL_S)
        except Empty:
            return
        try:
            found.set_result(self._warm(names))
        except BaseException as error:  # as in `refresh`
            found.set_exception(AnswerError(f"experts could not be loaded: {error}"))
