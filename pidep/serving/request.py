"""One row of a request and its result, and how they travel. Shared by both clients."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pidep.artifacts import names
from pidep.errors import ServingError, UnreachableError, UsageError, fault_of_text
from pidep.inputs.decoding import Decoding

__all__ = [
    "CHOICE",
    "RESULT",
    "RESULT_OR_ERROR",
    "Protocol",
    "Request",
    "Result",
    "check_address",
    "chosen",
    "encode_rows",
    "failure",
    "new_request_id",
    "results",
    "status_of",
    "status_row",
    "with_candidates",
]

Protocol = Literal["grpc", "http"]
Array = npt.NDArray[Any]

RESULT = (names.SCORES, names.LABELS, names.LABEL, names.DIGEST, names.ENTRY)
"""Outputs of which `results` are made."""
RESULT_OR_ERROR = (*RESULT, names.ERROR)
"""Outputs of which `results` are made, where an error stays with its row."""
CHOICE = (names.EMBEDDING, names.DIGEST, names.ENTRY)
"""Outputs of which `chosen` is made."""


@dataclass(frozen=True)
class Request:
    """One row."""

    text: str = ""
    expert: str = ""
    """Served name; not used by a merged model."""
    image: bytes | Path | None = None
    """An encoded image or the path of one."""
    columns: Mapping[str, Any] | None = None
    """The row's columns in the place of its text: texts and numbers, as in the task's data. The
    expert's template makes the text of them.
    """
    key: str = ""
    """What decides which version answers while the name has a canary, such as a user's id. Rows of
    one key meet one version; without a key, equal rows do."""
    candidates: Sequence[str] = ()
    """Texts of which an encoder-decoder answers with one; its expert's labels when empty. What
    embeds compares candidates with `Client.choose`.
    """
    decoding: Decoding | None = None
    """How an encoder-decoder's answer is decoded."""

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
            raise UsageError(
                f"{self.image}: expected an image file, {error.strerror}; check the path"
            ) from error


@dataclass(frozen=True)
class Result:
    """One row's answer."""

    expert: str
    label: str
    """The best label."""
    scores: dict[str, float]
    """Label to score; they sum to 1."""
    digest: str
    """The expert's version that answered."""
    entry: str = ""
    """Digest of the graph, tokenizer and record that answered; empty where they have none."""
    error: str = ""
    """Why the row was not answered: a code and a message. Only where errors stay with their rows;
    label and digest are empty then.
    """
    request_id: str = field(default="", compare=False)
    """Id of the request that carried the row. The server's log names it where the row failed."""


def check_address(url: str) -> None:
    """Refuse an address that is not host:port.

    Raises:
        UsageError: it is not.

    >>> check_address("127.0.0.1:8001")
    """
    host, _, port = url.rpartition(":")
    if not host or "/" in host or not port.isdigit() or not 0 < int(port) < 65536:
        raise UsageError(f"{url}: not a server address, expected host:port such as 127.0.0.1:8001")


def encode_rows(rows: Sequence[Request], *, with_expert: bool) -> dict[str, list[bytes]]:
    """Tensor name to the bytes of each row.

    Args:
        with_expert: whether the model has the input EXPERT, which only a bank has.

    Raises:
        UsageError: a text is not a string, an image's file cannot be read, or columns are no JSON.

    >>> encode_rows([Request("a film", "movie")], with_expert=True)
    {'TEXT': [b'a film'], 'EXPERT': [b'movie']}
    """
    tensors = {names.TEXT: [_text(row.text, f"row {at}") for at, row in enumerate(rows, 1)]}
    if with_expert:
        tensors[names.EXPERT] = [
            _text(row.expert, f"row {at}: expert") for at, row in enumerate(rows, 1)
        ]
    # Servers of older releases have no such input, so it is sent only where it is needed.
    if any(row.columns is not None for row in rows):
        tensors[names.COLUMNS] = [_columns(row, f"row {at}") for at, row in enumerate(rows, 1)]
    if any(row.key for row in rows):
        tensors[names.KEY] = [_text(row.key, f"row {at}: key") for at, row in enumerate(rows, 1)]
    if any(row.candidates for row in rows):
        tensors[names.CANDIDATES] = [
            _candidates(row, f"row {at}") for at, row in enumerate(rows, 1)
        ]
    if any(row.decoding is not None for row in rows):
        tensors[names.DECODING] = [
            json.dumps(row.decoding.to_json()).encode() if row.decoding else b"" for row in rows
        ]
    # IMAGE is optional: a text-only model has no such input, and refuses it.
    if any(row.image is not None for row in rows):
        tensors[names.IMAGE] = [row.encoded() for row in rows]
    return tensors


def _text(value: object, where: str) -> bytes:
    """A text as UTF-8."""
    if not isinstance(value, str):
        raise UsageError(f"{where}: expected a text, found {type(value).__name__}")
    if fault := fault_of_text(value):
        raise UsageError(f"{where}: {fault}")
    return value.encode()


def _candidates(row: Request, where: str) -> bytes:
    """A row's candidates as JSON; nothing where it has none."""
    if not row.candidates:
        return b""
    if isinstance(row.candidates, str):
        raise UsageError(f"{where}: candidates: expected several texts, found one text")
    texts = [_text(each, f"{where}: candidate").decode() for each in row.candidates]
    return json.dumps(texts, ensure_ascii=False).encode()


def _columns(row: Request, where: str) -> bytes:
    """A row's columns as JSON; nothing where it has none."""
    if row.columns is None:
        return b""
    try:
        return json.dumps(dict(row.columns), ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(
            f"{where}: columns: expected texts and numbers ({error}); "
            "send an image as `image`, and everything else as text"
        ) from error


def results(
    rows: Sequence[Request], outputs: Sequence[Array], *, request_id: str = ""
) -> list[Result]:
    """Results of a batch.

    Args:
        outputs: `RESULT` or `RESULT_OR_ERROR`, each with one line a row.
    """
    scores, labels, label, digest, entry, *errors = outputs
    return [
        Result(
            row.expert,
            label[at, 0].decode(),
            # A row with fewer labels than its neighbours ends with empty names.
            {
                name.decode(): float(value)
                for name, value in zip(labels[at], scores[at], strict=True)
                if name
            },
            digest[at, 0].decode(),
            entry[at, 0].decode(),
            errors[0][at, 0].decode() if errors else "",
            request_id,
        )
        for at, row in enumerate(rows)
    ]


def status_row() -> Request:
    """The row that a bank answers with its state."""
    return Request("status", names.STATUS)


def status_of(result: Result) -> dict[str, Any]:
    """The server's state, of the answer to `status_row`.

    Raises:
        ServingError: it is no state.
    """
    try:
        found = json.loads(result.label)
    except ValueError as error:
        raise ServingError(f"status: expected JSON, found {result.label[:60]!r}") from error
    return dict(found)


def with_candidates(row: Request, candidates: Sequence[Request]) -> list[Request]:
    """The row and its candidates, which the bare backbone embeds, as in training.

    Raises:
        UsageError: no candidates.
    """
    if not candidates:
        raise UsageError("choose: expected at least one candidate, found none")
    return [row, *(replace(candidate, expert=names.BACKBONE) for candidate in candidates)]


def chosen(row: Request, batches: Sequence[Sequence[Array]], *, request_id: str = "") -> Result:
    """The choice among candidates; `scores` are cosines by candidate number from 0.

    Args:
        batches: `CHOICE` of each batch of `with_candidates`.
    """
    embeddings = np.concatenate([embedded for embedded, *_ in batches])
    # Embeddings have unit length, so the product is the cosine.
    cosines = embeddings[1:] @ embeddings[0]
    scores = {str(number): float(value) for number, value in enumerate(cosines)}
    _, digest, entry = (array[0] for array in batches[0])
    best = str(int(cosines.argmax()))
    return Result(
        row.expert, best, scores, digest[0].decode(), entry[0].decode(), request_id=request_id
    )


def new_request_id() -> str:
    """An id that no other request has.

    >>> len(new_request_id())
    16
    """
    return secrets.token_hex(8)


def failure(
    url: str, model: str, error: Exception, *, timeout_s: float, request_id: str = ""
) -> ServingError:
    """An exception of tritonclient or its transport as one line that says where and what to do.

    It is an `UnreachableError` where nobody answered at all.

    Args:
        request_id: is a part of the message where the request came to a server.
    """
    named = f" (request {request_id})" if request_id else ""
    from tritonclient.utils import InferenceServerException

    hint = "; is pidep serve running there?"
    status = ""
    message = " ".join(str(error).split())
    # Not by attributes: aiohttp's ClientResponseError has a `status` and a `message` too.
    if isinstance(error, InferenceServerException):
        status = str(error.status())
        message = " ".join(str(error.message()).split())
    # Python 3.10 has two classes of timeouts.
    if isinstance(error, TimeoutError | asyncio.TimeoutError) or "DEADLINE_EXCEEDED" in status:
        return UnreachableError(
            f"{url}, model {model}: no answer within {timeout_s:g} s; is the server busy?{named}"
        )
    if not isinstance(error, InferenceServerException):
        return UnreachableError(f"{url}: cannot be reached ({message}){hint}")
    if "UNAVAILABLE" in status or status == "503":
        if "queue" in message.lower():
            hint = f"; the server sheds load, ask again later or less often{named}"
        elif "is not loaded" in message:  # by a front, which answers
            hint = named
        return UnreachableError(f"{url}, model {model}: {message}{hint}")
    return ServingError(f"{url}, model {model}: {message}{named}")
