"""An asyncio client of a served bank or merged model; the methods and results of `Client`."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from itertools import islice
from types import TracebackType
from typing import Any, ClassVar

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

__all__ = ["AsyncClient"]


class AsyncClient(Connection):
    """A connection to one model, for one event loop; many requests may be in flight at once.

    Use as an asynchronous context manager:

        async with AsyncClient("127.0.0.1:8001") as client:
            (result,) = await client.infer([Request("a good film", "movie")])
    """

    _transports: ClassVar[Mapping[Protocol, str]] = {
        "grpc": "tritonclient.grpc.aio",
        "http": "tritonclient.http.aio",
    }
    _http_limit = "conn_timeout"

    def _connect(self) -> None:
        """Leave the connection to the first request: it belongs to the running event loop."""

    async def infer(
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
        return results(rows, await self._ask(rows, wanted, request_id), request_id=request_id)

    async def choose(
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
        batches = [
            await self._ask(asked[at : at + batch_size], CHOICE, request_id) for at in starts
        ]
        return chosen(row, batches, request_id=request_id)

    async def stream(
        self,
        rows: Iterable[Request],
        *,
        batch_size: int = 32,
        in_flight: int = 1,
        all_or_nothing: bool = True,
    ) -> AsyncIterator[Result]:
        """Results of any number of rows, in order, a batch at a time; errors as `infer`.

        Args:
            all_or_nothing: as `infer`.
            in_flight: batches that are sent before the first of them is answered. As many rows and
                results are in memory, and no more.
        """
        iterator = iter(rows)
        running: deque[asyncio.Task[list[Result]]] = deque()
        try:
            while batch := list(islice(iterator, batch_size)):
                running.append(
                    asyncio.create_task(self.infer(batch, all_or_nothing=all_or_nothing))
                )
                if len(running) == in_flight:
                    for result in await running.popleft():
                        yield result
            while running:
                for result in await running.popleft():
                    yield result
        finally:
            # Left early, by an error or by the caller: nobody waits for the others.
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def status(self) -> dict[str, Any]:
        """What a bank serves and what is wrong with it; keys and errors as `Client.status`."""
        return status_of((await self.infer([status_row()]))[0])

    async def _ask(
        self, rows: Sequence[Request], wanted: Sequence[str], request_id: str
    ) -> list[Array]:
        """The outputs asked for, of one request and its retries."""
        attempts = self._attempts()
        while True:
            inputs, outputs = self._tensors(rows, wanted)
            try:
                # Inside the try: gRPC and aiohttp can refuse an address only when they connect.
                if self._client is None:
                    self._client = self._new_client()
                response = await self._client.infer(
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
            await asyncio.sleep(delay_s)

    def _errors(self) -> tuple[type[Exception], ...]:
        """Exceptions of tritonclient, and transport exceptions that it does not wrap."""
        from tritonclient.utils import InferenceServerException

        found = (InferenceServerException, OSError, RuntimeError, asyncio.TimeoutError)
        if self._protocol == "grpc":
            return found
        from aiohttp import ClientError

        return (*found, ClientError)

    async def close(self) -> None:
        """Close the connection; the next request connects anew."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()
