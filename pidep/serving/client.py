"""A blocking client of a served bank or merged model, over NVIDIA's tritonclient."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from itertools import islice
from queue import SimpleQueue
from threading import Thread
from types import TracebackType
from typing import Any, ClassVar, TypeAlias

from pidep.errors import ServingError
from pidep.serving.connection import Connection
from pidep.serving.request import (
    CHOICE,
    RESULT,
    RESULT_OR_ERROR,
    Array,
    Protocol,
    Request,
    Result,
    chosen,
    new_request_id,
    results,
    status_of,
    status_row,
    with_candidates,
)

__all__ = ["Client", "Protocol", "Request", "Result"]

Task: TypeAlias = tuple[Future[list[Result]], Sequence[Request]]
"""A batch and the place of its results."""


class Client(Connection):
    """A connection to one model; not for use from several threads at once.

    Use as a context manager:

        with Client("127.0.0.1:8001") as client:
            (result,) = client.infer([Request("a good film", "movie")])
    """

    _transports: ClassVar[Mapping[Protocol, str]] = {
        "grpc": "tritonclient.grpc",
        "http": "tritonclient.http",
    }
    _http_limit = "network_timeout"

    def _connect(self) -> None:
        try:
            self._client = self._new_client()
        except Exception as error:  # tritonclient raises what its transport raises
            message = f"{self._url}: not a server address, expected host:port ({error})"
            raise ServingError(message) from error

    def infer(
        self, rows: Sequence[Request], *, all_or_nothing: bool = True, request_id: str = ""
    ) -> list[Result]:
        """Results of one batch; its rows may name different experts.

        Args:
            all_or_nothing: whether a row that cannot be answered fails the batch. False gives this
                row a `Result` with `error`, and answers the others.
            request_id: names the request in the server's log; a new one when empty. It is in the
                results and in errors.

        Raises:
            ServingError: the server refused or cannot be reached; nothing was answered.
        """
        wanted = RESULT if all_or_nothing else RESULT_OR_ERROR
        request_id = request_id or new_request_id()
        return results(rows, self._ask(rows, wanted, request_id), request_id=request_id)

    def choose(
        self,
        row: Request,
        candidates: Sequence[Request],
        *,
        batch_size: int = 32,
        request_id: str = "",
    ) -> Result:
        """The candidate that answers the row; `label` is its number from 0, `scores` are cosines.

        Args:
            request_id: as `infer`; all batches have the same.

        Raises:
            UsageError: no candidates.
            ServingError: as `infer`.
        """
        asked = with_candidates(row, candidates)
        starts = range(0, len(asked), batch_size)
        request_id = request_id or new_request_id()
        batches = [self._ask(asked[at : at + batch_size], CHOICE, request_id) for at in starts]
        return chosen(row, batches, request_id=request_id)

    def stream(
        self,
        rows: Iterable[Request],
        *,
        batch_size: int = 32,
        in_flight: int = 1,
        all_or_nothing: bool = True,
    ) -> Iterator[Result]:
        """Results of any number of rows, in order, a batch at a time; errors as `infer`.

        Args:
            all_or_nothing: as `infer`.
            in_flight: batches that are sent before the first of them is answered, each over a
                connection of its own. As many rows and results are in memory, and no more.
        """
        iterator = iter(rows)
        batches = iter(lambda: list(islice(iterator, batch_size)), [])
        if in_flight == 1:
            for batch in batches:
                yield from self.infer(batch, all_or_nothing=all_or_nothing)
            return
        tasks: SimpleQueue[Task | None] = SimpleQueue()
        workers = [
            Thread(target=self._work, args=(tasks, all_or_nothing), daemon=True)
            for _ in range(in_flight)
        ]
        for worker in workers:
            worker.start()
        running: deque[Future[list[Result]]] = deque()
        try:
            for batch in batches:
                running.append(Future())
                tasks.put((running[-1], batch))
                if len(running) == in_flight:
                    yield from running.popleft().result()
            while running:
                yield from running.popleft().result()
        finally:
            # Left early, by an error or by the caller: what has not begun does not begin.
            for future in running:
                future.cancel()
            for _ in workers:
                tasks.put(None)

    def _work(self, tasks: SimpleQueue[Task | None], all_or_nothing: bool) -> None:
        """Answer batches until there is none."""
        # A connection belongs to the thread that opens it: tritonclient's HTTP runs on gevent.
        client: Client | None = None
        while (task := tasks.get()) is not None:
            future, batch = task
            if not future.set_running_or_notify_cancel():
                continue
            try:
                client = client or self._another()
                future.set_result(client.infer(batch, all_or_nothing=all_or_nothing))
            except BaseException as error:  # it is raised where the result is waited for
                future.set_exception(error)
        if client is not None:
            client.close()

    def status(self) -> dict[str, Any]:
        """What a bank serves and what is wrong with it.

        Keys: `ready` (whether the store is being followed), `silent_s` (seconds since the last
        look at the store), `revision`, `served` (name to digest), `refused` (name to `digest` and
        `reason`), `rollouts` (name to what is counted of its versions), `fault` (of the store
        itself, or empty), `entry` (digest of the entry), `memory_mib` (resident memory of the
        model's process).

        Raises:
            ServingError: as `infer`, or the server is of a release without a status.
        """
        return status_of(self.infer([status_row()])[0])

    def _ask(self, rows: Sequence[Request], wanted: Sequence[str], request_id: str) -> list[Array]:
        """The outputs asked for, of one request and its retries."""
        attempts = self._attempts()
        while True:
            inputs, outputs = self._tensors(rows, wanted)
            try:
                response = self._client.infer(
                    self._model,
                    inputs,
                    outputs=outputs,
                    **self._options(wanted, attempts, request_id),
                )
                return self._arrays(response, rows, wanted)
            except self._errors() as error:
                if self._must_ask_without_entry(error):
                    continue
                failure = self._failure(error, request_id)
                delay_s = attempts.delay_s(failure)
                if delay_s is None:
                    raise failure from error
            time.sleep(delay_s)

    def _another(self) -> Client:
        """A client of the same server, for another thread."""
        return Client(
            self._url,
            protocol=self._protocol,
            model=self._model,
            timeout_s=self._timeout_s,
            retries=self._retries,
        )

    def _errors(self) -> tuple[type[Exception], ...]:
        """Exceptions of tritonclient, and transport exceptions that it does not wrap."""
        from tritonclient.utils import InferenceServerException

        found = (InferenceServerException, OSError, RuntimeError)
        if self._protocol == "grpc":
            return found
        # tritonclient's HTTP client lets this one through unwrapped.
        from geventhttpclient.response import HTTPParseError

        return (*found, HTTPParseError)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
