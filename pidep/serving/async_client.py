"""An asyncio client of a served bank or merged model; the methods and results of `Client`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from itertools import islice
from types import TracebackType
from typing import Any

from pidep.artifacts.names import BANK
from pidep.errors import UsageError
from pidep.serving.client import triton_input
from pidep.serving.request import (
    CHOICE,
    RESULT,
    Array,
    Protocol,
    Request,
    Result,
    check_address,
    chosen,
    encode_rows,
    failure,
    results,
    with_candidates,
)

__all__ = ["AsyncClient"]


class AsyncClient:
    """A connection to one model, for one event loop; many requests may be in flight at once.

    Use as an asynchronous context manager:

        async with AsyncClient("127.0.0.1:8001") as client:
            (result,) = await client.infer([Request("a good film", "movie")])
    """

    def __init__(
        self,
        url: str,
        *,
        protocol: Protocol = "grpc",
        model: str = BANK,
        timeout_s: float = 30.0,
    ) -> None:
        """Check the arguments; the first request connects.

        Args:
            url: host:port.
            model: the bank, or the name of a merged model.
            timeout_s: of one request.

        Raises:
            UsageError: not an address, or tritonclient is not installed.
        """
        try:
            if protocol == "grpc":
                import tritonclient.grpc.aio as triton
            else:
                import tritonclient.http.aio as triton
        except ImportError as error:
            raise UsageError("tritonclient not found: pip install 'pidep[client]'") from error
        check_address(url)
        self._triton: Any = triton
        self._url, self._model, self._protocol = url, model, protocol
        self._timeout_s = timeout_s
        self._client: Any = None

    async def infer(self, rows: Sequence[Request]) -> list[Result]:
        """Results of one batch; its rows may name different experts.

        Raises:
            ServingError: the server refused or cannot be reached; nothing was answered.
        """
        return results(rows, await self._ask(rows, RESULT))

    async def choose(
        self, row: Request, candidates: Sequence[Request], *, batch_size: int = 32
    ) -> Result:
        """The candidate that answers the row; `label` is its number from 0, `scores` are cosines.

        Raises:
            UsageError: no candidates.
            ServingError: as `infer`.
        """
        asked = with_candidates(row, candidates)
        starts = range(0, len(asked), batch_size)
        batches = [await self._ask(asked[at : at + batch_size], CHOICE) for at in starts]
        return chosen(row, batches)

    async def stream(
        self, rows: Iterable[Request], *, batch_size: int = 32
    ) -> AsyncIterator[Result]:
        """Results of any number of rows, in order, a batch at a time; errors as `infer`."""
        iterator = iter(rows)
        while batch := list(islice(iterator, batch_size)):
            for result in await self.infer(batch):
                yield result

    async def _ask(self, rows: Sequence[Request], wanted: Sequence[str]) -> list[Array]:
        """The outputs asked for, of one request."""
        tensors = encode_rows(rows, with_expert=self._model == BANK)
        inputs = [triton_input(self._triton, name, values) for name, values in tensors.items()]
        outputs = [self._triton.InferRequestedOutput(name) for name in wanted]
        more = {"client_timeout": self._timeout_s} if self._protocol == "grpc" else {}
        try:
            # Inside the try: gRPC and aiohttp can refuse an address only when they connect.
            client = self._connected()
            response = await client.infer(self._model, inputs, outputs=outputs, **more)
        except self._errors() as error:
            raise failure(self._url, self._model, error, timeout_s=self._timeout_s) from error
        return [response.as_numpy(name) for name in wanted]

    def _connected(self) -> Any:
        """tritonclient's client. It belongs to the running event loop, so it is made inside one."""
        if self._client is None:
            # gRPC takes the limit with each request, HTTP with the connection.
            options = {} if self._protocol == "grpc" else {"conn_timeout": self._timeout_s}
            self._client = self._triton.InferenceServerClient(self._url, **options)
        return self._client

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
