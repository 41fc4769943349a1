"""What the blocking and the asyncio client share: arguments, transport, tensors, errors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, ClassVar

import numpy as np

from pidep.artifacts.names import BANK, ENTRY, ERROR, ROW_ERRORS
from pidep.errors import ServingError, UsageError
from pidep.serving.addresses import channel_options
from pidep.serving.request import (
    Array,
    Protocol,
    Request,
    check_address,
    encode_rows,
    failure,
)
from pidep.serving.retries import Attempts

__all__ = ["Connection"]


class Connection(ABC):
    """A connection to one model. A subclass names its transports and sends the requests."""

    _transports: ClassVar[Mapping[Protocol, str]]
    """Module of tritonclient by protocol."""
    _http_limit: ClassVar[str]
    """Name of the time limit that an HTTP client takes."""

    def __init__(
        self,
        url: str,
        *,
        protocol: Protocol = "grpc",
        model: str = BANK,
        timeout_s: float = 30.0,
        retries: int = 2,
    ) -> None:
        """Check the arguments. `Client` connects at once, `AsyncClient` with its first request.

        Args:
            url: host:port.
            model: the bank, or the name of a merged model.
            timeout_s: of one request, with its retries.
            retries: how often a request is sent again where nobody listens or the server sheds
                load. The waits between are random and grow from 50 ms to 2 s.

        Raises:
            UsageError: no such protocol, not an address, or tritonclient is not installed.
            ServingError: tritonclient refuses the address; only from `Client`.
        """
        if protocol not in self._transports:
            raise UsageError(f"protocol {protocol!r}: expected grpc or http")
        try:
            self._triton: Any = import_module(self._transports[protocol])
        except ImportError as error:
            raise UsageError("tritonclient not found: pip install 'pidep[client]'") from error
        check_address(url)
        self._url, self._model, self._protocol = url, model, protocol
        self._timeout_s, self._retries = timeout_s, retries
        # gRPC takes the limit with each request, HTTP with the connection.
        grpc = protocol == "grpc"
        http_limit = {self._http_limit: timeout_s}
        self._per_connection: dict[str, Any] = channel_options(url) if grpc else http_limit
        # Models that an older release has exported have no output ENTRY; the first answer tells.
        self._has_entry = True
        self._client: Any = None
        self._connect()

    @abstractmethod
    def _connect(self) -> None:
        """Make the client of tritonclient where this is the time for it."""

    def _attempts(self) -> Attempts:
        """Of a new request."""
        return Attempts(self._retries, self._timeout_s)

    def _options(
        self, wanted: Sequence[str], attempts: Attempts, request_id: str
    ) -> dict[str, Any]:
        """The id, how long server and client may take for an attempt, and the parameters."""
        left = attempts.left_s
        # The server drops a request that has waited so long, where its queue policy permits that.
        options: dict[str, Any] = {"timeout": max(int(1e6 * left), 1), "request_id": request_id}
        if self._protocol == "grpc":
            options["client_timeout"] = left
        if ERROR in wanted:
            options["parameters"] = {ROW_ERRORS: True}
        return options

    def _new_client(self) -> Any:
        return self._triton.InferenceServerClient(self._url, **self._per_connection)

    def _tensors(self, rows: Sequence[Request], wanted: Sequence[str]) -> tuple[Any, Any]:
        """Inputs and outputs of one request."""
        tensors = encode_rows(rows, with_expert=self._model == BANK)
        inputs = [self._input(name, values) for name, values in tensors.items()]
        asked = [name for name in wanted if name != ENTRY or self._has_entry]
        return inputs, [self._triton.InferRequestedOutput(name) for name in asked]

    def _arrays(self, response: Any, rows: Sequence[Request], wanted: Sequence[str]) -> list[Array]:
        """The outputs asked for; an empty digest for each row where the model has no ENTRY."""
        empty = np.full((len(rows), 1), b"", dtype=object)
        return [
            empty if name == ENTRY and not self._has_entry else response.as_numpy(name)
            for name in wanted
        ]

    def _must_ask_without_entry(self, error: Exception) -> bool:
        """Whether the error only says that the model has no output ENTRY; then it is remembered."""
        lacks = self._has_entry and f"unexpected inference output '{ENTRY}'" in str(error)
        self._has_entry = self._has_entry and not lacks
        return lacks

    def _input(self, name: str, values: Sequence[bytes]) -> Any:
        """A `[B, 1]` BYTES input of either transport."""
        tensor = self._triton.InferInput(name, [len(values), 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[value] for value in values], dtype=object))
        return tensor

    def _failure(self, error: Exception, request_id: str) -> ServingError:
        return failure(
            self._url, self._model, error, timeout_s=self._timeout_s, request_id=request_id
        )
