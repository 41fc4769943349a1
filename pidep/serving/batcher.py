"""Forms the batches of a model: requests wait here, in a queue with an end.

Triton Server's own dynamic batcher is not used. Its thread can miss the request that comes while an
answer is on its way out, and then sleeps for half a second with all clients waiting (measured on
2.51, see decision 034). It counts no request that its full queue refuses. And it hands over a batch
only when the one before it is answered, so that nothing is read meanwhile.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from pidep.errors import OverloadError, PidepError
from pidep.runtime.answer import Answer
from pidep.runtime.isolate import as_row_error
from pidep.serving.asked import Asked

__all__ = ["Batcher", "Shed", "ShedReason", "Waiting", "is_wanted", "most_rows", "reply_to"]

ShedReason: TypeAlias = Literal["queue_full", "deadline", "cancelled"]
"""Why rows are not answered: no place, no time left, or nobody who waits."""
Reply: TypeAlias = Callable[[Sequence[Answer | PidepError] | PidepError], None]
"""Sends an answer or an error for each row, or the error of the whole request."""

Shed: TypeAlias = Callable[[ShedReason, int], None]
"""Is told why rows are not answered, and how many."""

_LONG_S = 0.05
"""A request that waited longer is asked whether its client has gone. Asking costs 0.1 ms."""
_BATCHES = 5
"""Batches of rows that may be here: one runs, four wait. More would only miss their deadlines."""
_LINGER = 0.05
"""How long a batch waits for the clients of the one before it, as a share of that one's time."""
_log = logging.getLogger(__name__)


@dataclass
class Waiting:
    """A request between its arrival and its answer."""

    asked: Sequence[Asked]
    reply: Reply
    """Called once, on any thread."""
    timeout_s: float = 0.0
    """Seconds that it may wait; 0 without a limit."""
    is_cancelled: Callable[[], bool] = lambda: False
    """Whether its client has gone; not asked after `reply`."""
    since: float = field(default_factory=time.monotonic)

    @property
    def waited_s(self) -> float:
        """Seconds since it came."""
        return time.monotonic() - self.since


def most_rows(max_batch: int) -> int:
    """Rows that may be here unanswered, where a batch has so many at most."""
    return _BATCHES * max(max_batch, 1)


class Batcher:
    """A queue of requests, and the thread that answers them in batches."""

    def __init__(
        self,
        answer: Callable[[Sequence[Waiting]], None],
        *,
        max_batch: int,
        shed: Shed = lambda reason, rows: None,
    ) -> None:
        """The thread starts at once.

        Args:
            answer: replies to every request of a batch, now or later.
            max_batch: rows of a batch; a larger request is a batch alone.
            shed: is told why rows are not answered, and how many.
        """
        self._answer, self._shed = answer, shed
        self._max_batch, self._max_rows = max_batch, most_rows(max_batch)
        self._changed = threading.Condition()
        self._waiting: deque[Waiting] = deque()
        self._rows = 0
        """Rows that are here: in the queue, in a batch, or until their experts are loaded."""
        self._together = 0
        """Most rows that were here when an answer of the last batch went out."""
        self._stopped = False
        self._thread = threading.Thread(target=self._work, name="pidep-batcher", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether requests are answered."""
        return self._thread.is_alive()

    def add(self, request: Waiting) -> None:
        """Take a request; its reply comes later.

        Raises:
            OverloadError: the queue is full. The request is not answered.
        """
        rows, reply, is_open = len(request.asked), request.reply, True

        def replied(answers: Sequence[Answer | PidepError] | PidepError) -> None:
            nonlocal is_open
            with self._changed:
                # A batch can fail when some of its requests have their answers already.
                if not is_open:
                    return
                is_open = False
                self._together = max(self._together, self._rows)
                self._rows -= rows
            try:
                reply(answers)
            except Exception:  # its client has gone, or the server is going
                _log.exception("an answer could not be sent")

        request.reply = replied
        with self._changed:
            if self._rows and self._rows + rows > self._max_rows:
                self._shed("queue_full", rows)
                raise OverloadError(
                    f"the queue is full: {self._rows} rows wait, {self._max_rows} may; try again "
                    "later"
                )
            self._rows += rows
            self._waiting.append(request)
            self._changed.notify()

    def stop(self) -> None:
        """Answer what waits, then end the thread; idempotent."""
        with self._changed:
            self._stopped = True
            self._changed.notify()
        self._thread.join(timeout=30)

    def _work(self) -> None:
        seconds = 0.0
        while True:
            with self._changed:
                while not self._waiting and not self._stopped:
                    self._changed.wait()
                if not self._waiting:
                    return
                self._gather(_LINGER * seconds)
                self._together = 0
                batch = self._taken()
            started = time.monotonic()
            try:
                wanted = [one for one in batch if is_wanted(one, self._shed)]
                if wanted:
                    self._answer(wanted)
            # Everything: a thread that died would leave every later request without an answer.
            except BaseException as error:
                _log.exception("a batch failed")
                for one in batch:
                    one.reply(as_row_error(error))
            seconds = time.monotonic() - started

    def _gather(self, within_s: float) -> None:
        """Wait a moment for as many rows as were here before the last answers went out.

        Clients that ask again at once would otherwise fall into two halves, which take turns in
        batches of half the size.
        """
        enough = min(self._together, self._max_batch)
        deadline = time.monotonic() + within_s
        while not self._stopped and self._num_waiting() < enough:
            left = deadline - time.monotonic()
            if left <= 0:
                return
            self._changed.wait(left)

    def _num_waiting(self) -> int:
        return sum(len(one.asked) for one in self._waiting)

    def _taken(self) -> list[Waiting]:
        """The next batch, in the order of arrival."""
        batch = [self._waiting.popleft()]
        rows = len(batch[0].asked)
        while self._waiting and rows + len(self._waiting[0].asked) <= self._max_batch:
            batch.append(self._waiting.popleft())
            rows += len(batch[-1].asked)
        return batch


def is_wanted(request: Waiting, shed: Shed) -> bool:
    """Whether an answer is still of use. If not, the request is told so, and its rows are shed."""
    waited_s = request.waited_s
    if request.timeout_s and waited_s > request.timeout_s:
        shed("deadline", len(request.asked))
        late = f"its time of {request.timeout_s:g} s passed in the queue; try again later"
        request.reply(OverloadError(late))
        return False
    if waited_s > _LONG_S and request.is_cancelled():
        shed("cancelled", len(request.asked))
        request.reply(OverloadError("its client has gone"))
        return False
    return True


def reply_to(
    requests: Sequence[Waiting],
    answers: Callable[[Sequence[Asked]], Sequence[Answer | PidepError]],
) -> None:
    """Answer the rows of some requests together, and reply to each."""
    rows = [row for one in requests for row in one.asked]
    found = answers(rows) if rows else []
    at = 0
    for one in requests:
        one.reply(found[at : at + len(one.asked)])
        at += len(one.asked)
