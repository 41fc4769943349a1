"""When a client asks again, and how long it waits before."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field

from pidep.errors import ServingError, UnreachableError

__all__ = ["Attempts"]

_FIRST_S = 0.05
_LONGEST_S = 2.0


@dataclass
class Attempts:
    """One request: its deadline, and the attempts that are left.

    An answer decides nothing on the server, so a request may be sent twice. It is sent again only
    where nobody has worked on it: no connection, or a server that sheds load (gRPC's UNAVAILABLE,
    HTTP's 503).
    """

    retries: int
    timeout_s: float
    """Of the request, with all of its attempts and the waits between them."""
    _started: float = field(default_factory=time.monotonic)
    _failed: int = 0

    @property
    def left_s(self) -> float:
        """Seconds until the deadline; never quite 0, which gRPC takes for no limit."""
        return max(self._started + self.timeout_s - time.monotonic(), 1e-3)

    def delay_s(self, error: ServingError) -> float | None:
        """Seconds to wait before the next attempt; None where there is none.

        The wait is drawn between 0 and a bound that doubles ("full jitter"), so that the clients
        of a server that comes back do not all ask at once.
        """
        self._failed += 1
        bound = min(_FIRST_S * 2 ** (self._failed - 1), _LONGEST_S)
        delay = random.uniform(0, bound)
        shed = isinstance(error, UnreachableError)
        if not shed or self._failed > self.retries or delay >= self.left_s:
            return None
        return delay
