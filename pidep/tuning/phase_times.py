"""Wall-clock seconds by phase of a run."""

from __future__ import annotations

import logging
import time

__all__ = ["PhaseTimes"]

_log = logging.getLogger(__name__)


class PhaseTimes:
    """Adds up the seconds of each phase."""

    def __init__(self) -> None:
        self._last = time.monotonic()
        self.seconds: dict[str, float] = {}

    def end(self, phase: str) -> None:
        """Count the time since the last call, or since the start, for this phase."""
        # Monotonic: the wall clock can be set while a run goes on.
        now = time.monotonic()
        self.seconds[phase] = round(self.seconds.get(phase, 0.0) + now - self._last, 3)
        self._last = now
        _log.info("%s: %.1f s so far", phase, self.seconds[phase])
