"""Keeps a Triton Server answering: starts it again where it ended, or where a model's process died
or hangs.

Triton Server notices no such process: the model stays "ready", new requests fail, and those that
the process held are never answered. A load of the model alone does not end them. A new server ends
them at once, and is ready in seconds.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from functools import partial

from pidep.errors import ServingError
from pidep.serving.restarts import Restarts
from pidep.serving.server import TritonServer
from pidep.serving.stubs import Stub, stubs_of

__all__ = ["Supervisor"]

_POLL_S = 0.5
_ASK_EVERY_S = 1.0
_HUNG_S = 4.0
"""Silence after which a stub that does nothing counts as hung."""
_IDLE = 0.1
"""Share of a core that the other threads of a hung stub may use; the watcher looks all the time."""
_STUCK_S = 120.0
"""Silence after which a stub counts as hung even though it is busy: an endless loop."""
_log = logging.getLogger(__name__)


class Supervisor:
    """Watches one running server; `run` blocks until it cannot be kept alive."""

    def __init__(self, server: TritonServer, *, max_restarts: int = 5) -> None:
        """Nothing is watched yet.

        Args:
            server: a started server.
            max_restarts: starts for the same cause, within ten minutes.
        """
        self._server = server
        self._max_restarts = max_restarts
        self._restarts: dict[str, Restarts] = {}
        self._ready_at = time.monotonic()
        self._probes: dict[str, _Probe] = {}
        self._down: tuple[str, str] | None = None
        """Why the last start failed, as `_found`."""

    def run(self) -> None:
        """Watch, and repair.

        Raises:
            ServingError: the server or a model fails again and again.
        """
        while True:
            cause, reason = self._down or self._found()
            if reason:
                self._restart(cause, reason)
            else:
                time.sleep(_POLL_S)

    def _found(self) -> tuple[str, str]:
        """What is wrong, and why; twice nothing where all is well."""
        ended = self._server.ended()
        if ended is not None:
            return "server", ended
        stubs = stubs_of(self._server.pid)
        for model in self._server.models_in_stubs:
            fault = self._fault(model, [stub for stub in stubs if stub.model == model])
            # A model whose server has just ended has no stub, either.
            if fault is not None and self._server.ended() is None:
                return model, f"model {model!r}: {fault}"
        return "", ""

    def _restart(self, cause: str, reason: str) -> None:
        """Start the server again, on the same ports."""
        self._count(cause, reason)
        about = {"model": None if cause == "server" else cause}
        _log.warning("%s; starting the server again", reason, extra=about)
        started = time.monotonic()
        self._server.stop(at_once=True)
        self._probes.clear()
        try:
            self._server.start()
        except ServingError as error:
            self._down = "server", str(error)
            return
        self._down = None
        self._ready_at = time.monotonic()
        _log.warning("Triton Server is ready again, after %.1f s", time.monotonic() - started)

    def _fault(self, model: str, stubs: Sequence[Stub]) -> str | None:
        """What is wrong with a model's stub; None where it works."""
        if not stubs:
            return "its process has ended"
        if not all(stub.lives for stub in stubs):
            return "its process was stopped or killed"
        probe = self._probes.setdefault(model, _Probe(self._server, model))
        return probe.fault(sum(stub.cpu_s for stub in stubs))

    def _count(self, what: str, reason: str) -> None:
        """Remember a repair, and wait where the last ones did not last.

        Raises:
            ServingError: there were too many.
        """
        now = time.monotonic()
        starts = self._restarts.setdefault(what, Restarts(self._max_restarts))
        # A start that failed did not work at all, however long the server before it had worked.
        worked_s = 0.0 if self._down else now - self._ready_at
        wait_s = starts.wait_s(now, worked_s=worked_s)
        if wait_s is None:
            again = f", after {starts.count} restarts in ten minutes" if starts.count else ""
            raise ServingError(f"{reason}{again}")
        time.sleep(wait_s)


class _Probe:
    """Asks a model every few seconds, in a thread, and measures how long it has been silent."""

    def __init__(self, server: TritonServer, model: str) -> None:
        self._server, self._model = server, model
        self._thread: threading.Thread | None = None
        self._asked_at = 0.0
        self._cpu_s = 0.0

    def fault(self, cpu_s: float) -> str | None:
        """Why the model counts as hung; None while it answers or works on a batch.

        Args:
            cpu_s: CPU time that its stub has used.
        """
        now = time.monotonic()
        waits = self._thread is not None and self._thread.is_alive()
        if not waits:
            if now - self._asked_at > _ASK_EVERY_S:
                self._asked_at, self._cpu_s = now, cpu_s
                ask = partial(self._server.ask, self._model, timeout_s=2 * _STUCK_S)
                self._thread = threading.Thread(target=ask, name="pidep-probe", daemon=True)
                self._thread.start()
            return None
        silent_s, worked_s = now - self._asked_at, cpu_s - self._cpu_s
        # A model with a long queue is silent, too, and works.
        if (silent_s > _HUNG_S and worked_s < _IDLE * silent_s) or silent_s > _STUCK_S:
            return f"it has not answered for {silent_s:.0f} s"
        return None
