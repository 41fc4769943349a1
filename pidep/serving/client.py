"""A blocking client of a served bank or merged model, over NVIDIA's tritonclient."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from types import TracebackType
from typing import Any, ClassVar

from pidep.errors import ServingError
from pidep.serving.connection import Connection
from pidep.serving.request import (
    CHOICE,
    RESULT,
    Array,
    Protocol,
    Request,
    Result,
    chosen,
    results,
    status_of,
    status_row,
    with_candidates,
)

__all__ = ["Client", "Protocol", "Request", "Result"]


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

    def infer(self, rows: Sequence[Request]) -> list[Result]:
        """Results of one batch; its rows may name different experts.

        Raises:
            ServingError: the server refused or cannot be reached; nothing was answered.
        """
        return results(rows, self._ask(rows, RESULT))

    def choose(
        self, row: Request, candidates: Sequence[Request], *, batch_size: int = 32
    ) -> Result:
        """The candidate that answers the row; `label` is its number from 0, `scores` are cosines.

        Raises:
            UsageError: no candidates.
            ServingError: as `infer`.
        """
        asked = with_candidates(row, candidates)
        starts = range(0, len(asked), batch_size)
        return chosen(row, [self._ask(asked[at : at + batch_size], CHOICE) for at in starts])

    def stream(self, rows: Iterable[Request], *, batch_size: int = 32) -> Iterator[Result]:
        """Results of any number of rows, in order, a batch at a time; errors as `infer`."""
        iterator = iter(rows)
        while batch := list(islice(iterator, batch_size)):
            yield from self.infer(batch)

    def status(self) -> dict[str, Any]:
        """What a bank serves and what is wrong with it.

        Keys: `ready` (whether the store is being followed), `silent_s` (seconds since the last
        look at the store), `revision`, `served` (name to digest), `refused` (name to `digest` and
        `reason`), `fault` (of the store itself, or empty), `entry` (digest of the entry).

        Raises:
            ServingError: as `infer`, or the server is of a release without a status.
        """
        return status_of(self.infer([status_row()])[0])

    def _ask(self, rows: Sequence[Request], wanted: Sequence[str]) -> list[Array]:
        """The outputs asked for, of one request."""
        inputs, outputs = self._tensors(rows, wanted)
        try:
            response = self._client.infer(self._model, inputs, outputs=outputs, **self._per_request)
        except self._errors() as error:
            if self._must_ask_without_entry(error):
                return self._ask(rows, wanted)
            raise self._failure(error) from error
        return self._arrays(response, rows, wanted)

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
