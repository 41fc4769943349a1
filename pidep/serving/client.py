"""Requests to a served bank or merged model through NVIDIA's tritonclient, over gRPC or HTTP."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np

from pidep.artifacts.names import BACKBONE, BANK
from pidep.errors import ServingError, UsageError

__all__ = ["BACKBONE", "BANK", "Client", "Request", "Result"]
Protocol = Literal["grpc", "http"]


@dataclass(frozen=True)
class Request:
    """One row."""

    text: str
    expert: str
    image: bytes | Path | None = None
    """An encoded image or the path of one."""

    def encoded(self) -> bytes:
        """The image's bytes; none when empty.

        Raises:
            UsageError: the file cannot be read.
        """
        if not isinstance(self.image, Path):
            return self.image or b""
        try:
            return self.image.read_bytes()
        except OSError as error:
            raise UsageError(f"{self.image}: expected an image file, {error.strerror}; check the path") from error


@dataclass(frozen=True)
class Result:
    """One row's answer."""

    expert: str
    label: str
    scores: dict[str, float]
    digest: str


def _check_address(url: str) -> None:
    host, _, port = url.rpartition(":")
    if not host or "/" in host or not port.isdigit() or not 0 < int(port) < 65536:
        raise UsageError(f"{url}: not a server address, expected host:port such as 127.0.0.1:8001")


class Client:
    """A connection; not for use from several threads at once."""

    def __init__(self, url: str, *, protocol: Protocol = "grpc", model: str = BANK, timeout_s: float = 30.0) -> None:
        try:
            if protocol == "grpc":
                import tritonclient.grpc as triton
            else:
                import tritonclient.http as triton
        except ImportError as error:
            raise UsageError("tritonclient not found: pip install 'pidep[client]'") from error
        _check_address(url)
        self._triton: Any = triton
        self._url, self._model = url, model
        self._timeout: dict[str, Any] = {"client_timeout": timeout_s} if protocol == "grpc" else {}
        options = {} if protocol == "grpc" else {"network_timeout": timeout_s}
        try:
            self._client: Any = triton.InferenceServerClient(url, **options)
        except Exception as error:
            raise ServingError(f"{url}: not a server address, expected host:port ({error})") from error

    def infer(self, rows: Sequence[Request]) -> list[Result]:
        """One batch; rows may name different experts.

        Raises:
            ServingError: the server refused or cannot be reached; nothing was answered.
        """
        scores, names, label, digest = self._ask(rows, ("SCORES", "LABELS", "LABEL", "DIGEST"))
        return [
            Result(
                row.expert,
                label[index, 0].decode(),
                {name.decode(): float(value) for name, value in zip(names[index], scores[index], strict=True) if name},
                digest[index, 0].decode(),
            )
            for index, row in enumerate(rows)
        ]

    def choose(self, row: Request, candidates: Sequence[Request], *, batch_size: int = 32) -> Result:
        """Which candidate answers the row: the candidates are embedded by the bare backbone, as in training, a batch at a time.

        `scores` are cosines by candidate number, `label` is the number of the best.

        Raises:
            UsageError: no candidates.
            ServingError: as `infer`.
        """
        if not candidates:
            raise UsageError("choose: expected at least one candidate, found none")
        asked = [row, *(replace(candidate, expert=BACKBONE) for candidate in candidates)]
        batches = [self._ask(asked[at : at + batch_size], ("EMBEDDING", "DIGEST")) for at in range(0, len(asked), batch_size)]
        embeddings = np.concatenate([embedded for embedded, _ in batches])
        cosines = embeddings[1:] @ embeddings[0]
        scores = {str(number): float(value) for number, value in enumerate(cosines)}
        return Result(row.expert, str(int(cosines.argmax())), scores, batches[0][1][0, 0].decode())

    def _ask(self, rows: Sequence[Request], wanted: Sequence[str]) -> list[Any]:
        """One request; the outputs asked for, as arrays."""
        inputs = [self._strings("TEXT", [row.text.encode() for row in rows])]
        if self._model == BANK:
            inputs.append(self._strings("EXPERT", [row.expert.encode() for row in rows]))
        if any(row.image is not None for row in rows):
            inputs.append(self._strings("IMAGE", [row.encoded() for row in rows]))
        outputs = [self._triton.InferRequestedOutput(name) for name in wanted]
        from tritonclient.utils import InferenceServerException

        try:
            response = self._client.infer(self._model, inputs, outputs=outputs, **self._timeout)
        except InferenceServerException as error:
            hint = "; is pidep serve running there?" if "UNAVAILABLE" in str(error.status()) else ""
            raise ServingError(f"{self._url}, model {self._model}: {' '.join(str(error.message()).split())}{hint}") from error
        except (OSError, RuntimeError) as error:
            raise ServingError(f"{self._url}: cannot be reached ({error}); is pidep serve running there?") from error
        return [response.as_numpy(name) for name in wanted]

    def stream(self, rows: Iterable[Request], *, batch_size: int = 32) -> Iterator[Result]:
        """Any number of rows, in order, a batch at a time."""
        iterator = iter(rows)
        while batch := list(islice(iterator, batch_size)):
            yield from self.infer(batch)

    def _strings(self, name: str, values: Sequence[bytes]) -> Any:
        tensor = self._triton.InferInput(name, [len(values), 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[value] for value in values], dtype=object))
        return tensor

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
