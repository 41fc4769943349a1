"""When something that ended may be started again: at once, after a wait, or not any more."""

from __future__ import annotations

from collections import deque

__all__ = ["Restarts"]

_WINDOW_S = 600.0
_LONGEST_WAIT_S = 30.0
_WELL_S = 30.0
"""A process that ran this long before it ended is started again at once."""


class Restarts:
    """The starts for one cause.

    One that ends soon after its start waits longer each time: 0, 1, 3, 7, 15, then 30 seconds. So a
    crash loop does not take the machine, and a process that was killed now and then is back at
    once.
    """

    def __init__(self, most: int) -> None:
        """No start yet.

        Args:
            most: starts within ten minutes.
        """
        self._most = most
        self._times: deque[float] = deque()
        self._soon = 0
        """Starts in a row that did not last."""

    @property
    def count(self) -> int:
        """Starts within the ten minutes before the last call of `wait_s`."""
        return len(self._times)

    def wait_s(self, now: float, *, worked_s: float) -> float | None:
        """Seconds to wait before the next start, which counts from now on; None for never again.

        Args:
            now: seconds of a clock that never goes back.
            worked_s: how long it worked before it ended.
        """
        while self._times and self._times[0] < now - _WINDOW_S:
            self._times.popleft()
        if len(self._times) >= self._most:
            return None
        self._soon = self._soon + 1 if self._times and worked_s < _WELL_S else 0
        self._times.append(now)
        return float(min(2**self._soon - 1, _LONGEST_WAIT_S))
