"""A blocking client of a served bank or merged model, over NVIDIA's tritonclient."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from types import TracebackType
from typing import Any

import numpy as np

from pidep.artifacts.names import BANK
from pidep.errors import ServingError, UsageError
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

__all__ = ["Client", "Protocol", "Request", "Result", "triton_input"]


class Client:
    """A connection to one model; not for use from several threads at once.

    Use as a context manager:

        with Client("127.0.0.1:8001") as client:
            (result,) = client.infer([Request("a good film", "movie")])
    """

    def __init__(
        self,
        url: str,
        *,
        protocol: Protocol = "grpc",
        model: str = BANK,
        timeout_s: float = 30.0,
    ) -> None:
        """Connect.

        Args:
            url: host:port.
            model: the bank, or the name of a merged model.
            timeout_s: of one request.

        Raises:
            UsageError: not an address, or tritonclient is not installed.
            ServingError: tritonclient refuses the address.
        """
        try:
            if protocol == "grpc":
                import tritonclient.grpc as triton
            else:
                import tritonclient.http as triton
        except ImportError as error:
            raise UsageError("tritonclient not found: pip install 'pidep[client]'") from error
        check_address(url)
        self._triton: Any = triton
        self._url, self._model, self._protocol = url, model, protocol
        self._timeout_s = timeout_s
        # gRPC takes the limit with each request, HTTP with the connection.
        grpc = protocol == "grpc"
        self._timeout: dict[str, Any] = {"client_timeout": timeout_s} if grpc else {}
        options = {} if grpc else {"network_timeout": timeout_s}
        try:
            self._client: Any = triton.InferenceServerClient(url, **options)
        except Exception as error:  # tritonclient raises what its transport raises
            message = f"{url}: not a server address, expected host:port ({error})"
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

    def _ask(self, rows: Sequence[Request], wanted: Sequence[str]) -> list[Array]:
        """The outputs asked for, of one request."""
        tensors = encode_rows(rows, with_expert=self._model == BANK)
        inputs = [triton_input(self._triton, name, values) for name, values in tensors.items()]
        outputs = [self._triton.InferRequestedOutput(name) for name in wanted]
        try:
            response = self._client.infer(self._model, inputs, outputs=outputs, **self._timeout)
        except self._errors() as error:
            raise failure(self._url, self._model, error, timeout_s=self._timeout_s) from error
        return [response.as_numpy(name) for name in wanted]

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


def triton_input(triton: Any, name: str, values: Sequence[bytes]) -> Any:
    """A `[B, 1]` BYTES input of either transport."""
    tensor = triton.InferInput(name, [len(values), 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[value] for value in values], dtype=object))
    return tensor
