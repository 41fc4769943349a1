"""Answers the requests whose experts must be loaded first, on a thread of its own.

Other requests are answered meanwhile: their batch waits for no disk.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from queue import Empty, SimpleQueue
from typing import TypeAlias

from pidep.errors import AnswerError, PidepError
from pidep.runtime.answer import Answer
from pidep.runtime.isolate import as_row_error
from pidep.serving.asked import Asked
from pidep.serving.batcher import Shed, Waiting, is_wanted
from pidep.serving.rollout import pinned
from pidep.serving.watcher import Serving, Watcher

__all__ = ["LateAnswers", "needs_cold"]

AnswerRows: TypeAlias = Callable[[Serving, Sequence[Asked]], Sequence[Answer | PidepError]]

_log = logging.getLogger(__name__)
_BATCH = 64
"""Rows of the requests that are answered together."""


def needs_cold(serving: Serving, asked: Sequence[Asked]) -> bool:
    """Whether a row names an expert that is not in memory."""
    cold = serving.residents.cold
    return bool(cold) and any(pinned(one.expert) in cold for one in asked)


class LateAnswers:
    """A queue of requests, and the thread that answers them."""

    def __init__(
        self, watcher: Watcher, answer: AnswerRows, *, shed: Shed, done: Callable[[], None]
    ) -> None:
        """The thread starts at once.

        Args:
            answer: answers rows from what is in memory, on any thread.
            shed: as of `Batcher`: a request can lose its time or its client here, too.
            done: is called after replies.
        """
        self._watcher, self._answer = watcher, answer
        self._shed, self._done = shed, done
        self._requests: SimpleQueue[Waiting | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="pidep-late", daemon=True)
        self._thread.start()

    def add(self, request: Waiting) -> None:
        """Answer a request later; this call returns at once."""
        self._requests.put(request)

    @property
    def is_alive(self) -> bool:
        """Whether requests are answered."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """Answer what waits, then end the thread; idempotent."""
        self._requests.put(None)
        self._thread.join(timeout=30)

    def _work(self) -> None:
        goes_on = True
        while goes_on:
            together: list[Waiting] = []
            one = self._requests.get()
            try:
                while one is not None:
                    together.append(one)
                    if sum(len(request.asked) for request in together) >= _BATCH:
                        break
                    one = self._requests.get_nowait()
                goes_on = one is not None
            except Empty:
                pass
            try:
                self._answer_all([one for one in together if is_wanted(one, self._shed)])
                self._done()
            except Exception as error:  # a thread that died would answer no later request
                _log.exception("late requests failed")
                for one in together:
                    one.reply(as_row_error(error))

    def _answer_all(self, requests: Sequence[Waiting]) -> None:
        """Answer the rows whose experts fit in memory together, then the next ones."""
        answers: list[dict[int, Answer | PidepError]] = [{} for _ in requests]
        left = [(at, row) for at, one in enumerate(requests) for row in range(len(one.asked))]
        while left:
            try:
                found = self._answer_some([requests[at].asked[row] for at, row in left])
            # Everything: a thread that died would leave every later request without an answer.
            except BaseException as error:
                found = dict.fromkeys(range(len(left)), as_row_error(error))
            for place, answer in found.items():
                at, row = left[place]
                own = answers[at]
                own[row] = answer
                if len(own) == len(requests[at].asked):
                    requests[at].reply([own[number] for number in range(len(own))])
            left = [one for place, one in enumerate(left) if place not in found]

    def _answer_some(self, asked: Sequence[Asked]) -> Mapping[int, Answer | PidepError]:
        """Row number to answer, of those rows whose experts fit in memory together."""
        serving = self._watcher.warm(list(dict.fromkeys(pinned(one.expert) for one in asked)))
        now = [at for at, one in enumerate(asked) if not needs_cold(serving, [one])]
        if not now:
            raise AnswerError("the experts of these rows left memory again; permit more bytes")
        return dict(zip(now, self._answer(serving, [asked[at] for at in now]), strict=True))
