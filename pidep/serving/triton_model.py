"""What Triton Server's Python backend calls: requests to rows, answers to responses. No torch."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pidep.artifacts import MergedRecord, names
from pidep.errors import OverloadError, PidepError, ServingError
from pidep.inputs.decoding import read_candidates, read_decoding
from pidep.inputs.row import Row
from pidep.inputs.template import read_columns
from pidep.runtime.answer import Answer
from pidep.runtime.bank import Bank
from pidep.runtime.isolate import as_row_error
from pidep.runtime.merged import Merged
from pidep.serving.asked import Asked
from pidep.serving.bank_answers import BankAnswers
from pidep.serving.batcher import Batcher, Waiting, reply_to
from pidep.serving.graph_model import GraphModel, require_graph
from pidep.serving.limits import Limits, resident_bytes_from_environment
from pidep.serving.log_lines import log_model
from pidep.serving.metrics import Metrics, error_code
from pidep.serving.request_log import log_refused, request_id_of
from pidep.serving.store import ExpertStore

__all__ = ["TritonPythonModel"]


_MAX_BATCH = 64
"""Rows of a batch, where the model's configuration does not say."""


class TritonPythonModel:
    """One instance per model: `execute` reads requests, and a batcher answers them."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the graph and, for a bank, start following the expert store."""
        folder = Path(args["model_repository"]) / args["model_version"]
        model = args.get("model_name", folder.parent.name)
        log_model(model)
        self._limits = Limits.from_environment()
        self._metrics = Metrics(model)
        self._bank: BankAnswers | None = None
        self._merged: Merged | None = None
        if (folder / names.BANK_RECORD).is_file():
            bank = Bank(folder, resident_bytes=resident_bytes_from_environment())
            self._bank = BankAnswers(bank, ExpertStore(bank.store), self._metrics)
            self._entry, self._width = bank.record.entry_digest or "", bank.record.hidden_size
        else:
            record, session = MergedRecord.read(folder), None
            if record.graph_model is not None:
                require_graph(folder, record)
                session = GraphModel(record.graph_model)
            self._merged = Merged(folder, session=session)
            self._entry, self._width = self._merged.record.entry_digest or "", 0
        config = json.loads(args.get("model_config") or "{}")
        size = config.get("max_batch_size") or _MAX_BATCH
        self._batcher = Batcher(self._answer, max_batch=size, shed=self._metrics.shed)

    def is_ready(self) -> bool:
        """Whether the model answers and follows its store. Triton Server asks from 26.03 on."""
        return self._batcher.is_alive and (self._bank is None or self._bank.is_ready)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Read the requests; exactly one response for each.

        A request that is wrong, or one too many, gets its error here. The others wait for their
        batch: their places have None, and their responses go through their response senders.
        """
        return [self._taken(request) for request in requests]

    def _taken(self, request: Any) -> Any:
        """The response that a request gets at once; None where it comes later."""
        try:
            asked = self._read(request)
            respond = _Respond.to(request, entry=self._entry, width=self._width)
            sender = request.get_response_sender()
            self._batcher.add(
                Waiting(
                    asked,
                    partial(_send, sender, respond),
                    timeout_s=request.timeout() / 1e6,
                    is_cancelled=sender.is_cancelled,
                )
            )
        except OverloadError as error:
            log_refused(request_id_of(request), [error])
            return _error(error)
        except Exception as error:
            wrong = as_row_error(error)
            log_refused(request_id_of(request), [wrong])
            self._metrics.refused([wrong])
            return _error(wrong)
        return None

    def _answer(self, requests: Sequence[Waiting]) -> None:
        """Reply to a batch."""
        waited_s = sum(one.waited_s for one in requests)
        if self._bank is not None:
            self._bank.answer(requests)
        else:
            reply_to(requests, self._by_merged)
        # When the clients have their answers.
        self._metrics.waited(len(requests), waited_s)
        if self._bank is not None:
            self._bank.count()
        else:
            self._metrics.count()

    def _by_merged(self, asked: Sequence[Asked]) -> Sequence[Answer | PidepError]:
        assert self._merged is not None
        started = time.perf_counter()
        answers = self._merged.run([one.row for one in asked])
        seconds = time.perf_counter() - started
        self._metrics.batch([one.expert for one in asked], answers, seconds=seconds)
        return answers

    def finalize(self) -> None:
        """Answer what waits, and stop following the store."""
        self._batcher.stop()
        if self._bank is not None:
            self._bank.stop()

    def _read(self, request: Any) -> list[Asked]:
        """A request's rows, and the expert of each."""
        self._limits.check(
            texts=_bytes(request, names.TEXT) or [],
            experts=_bytes(request, names.EXPERT) or [],
            images=_bytes(request, names.IMAGE) or [],
            columns=_bytes(request, names.COLUMNS) or [],
            candidates=_bytes(request, names.CANDIDATES) or [],
            decodings=_bytes(request, names.DECODING) or [],
            keys=_bytes(request, names.KEY) or [],
        )
        rows = _rows(request)
        if self._bank is None:
            return list(map(Asked, rows))
        experts = _strings(request, names.EXPERT)
        keys = _bytes(request, names.KEY) or [b""] * len(rows)
        for what, values in ((names.EXPERT, experts), (names.KEY, keys)):
            if len(rows) != len(values):
                one = "expert" if what == names.EXPERT else "key"
                raise ServingError(
                    f"the request has {len(rows)} rows, {what} {len(values)}; give one {one} a row"
                )
        return list(map(Asked, rows, experts, keys))


def _rows(request: Any) -> list[Row]:
    """The rows of a request: texts, columns in their place, and images."""
    columns, images = _bytes(request, names.COLUMNS), _bytes(request, names.IMAGE)
    if columns is None:
        texts = _strings(request, names.TEXT)
        columns = [b""] * len(texts)
    else:
        # TEXT is optional here, and empty in the rows that have columns.
        given = _bytes(request, names.TEXT) is not None
        texts = _strings(request, names.TEXT) if given else [""] * len(columns)
    if images is None:
        images = [b""] * len(texts)
    candidates, decodings = (
        _bytes(request, name) or [b""] * len(texts) for name in (names.CANDIDATES, names.DECODING)
    )
    for name, values in (
        (names.COLUMNS, columns),
        (names.IMAGE, images),
        (names.CANDIDATES, candidates),
        (names.DECODING, decodings),
    ):
        if len(values) != len(texts):
            raise ServingError(
                f"TEXT has {len(texts)} rows, {name} {len(values)}; "
                f"give one value a row, empty where there is none"
            )
    found = []
    for at, (text, image, data) in enumerate(zip(texts, images, columns, strict=True)):
        where = f"row {at + 1}"
        row = Row(
            text,
            image or None,
            read_candidates(candidates[at], where) if candidates[at] else (),
            where=where,
            columns=read_columns(data, where) if data else None,
            decoding=read_decoding(decodings[at], where) if decodings[at] else None,
        )
        found.append(row)
    return found


def _parameter(request: Any, name: str) -> bool:
    """Whether a parameter of the request is true."""
    # Triton Server passes the parameters as the text of a JSON object.
    return json.loads(request.parameters() or "{}").get(name) is True


def _strings(request: Any, name: str) -> list[str]:
    values = _bytes(request, name)
    if values is None:
        raise ServingError(f"input {name} is missing")
    try:
        return [value.decode("utf-8") for value in values]
    except UnicodeDecodeError as error:
        raise ServingError(
            f"input {name}: not UTF-8 (byte {error.start}); encode the text as UTF-8"
        ) from error


def _bytes(request: Any, name: str) -> list[bytes] | None:
    # The module exists inside Triton Server's stub only.
    import triton_python_backend_utils as pb_utils

    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return None if tensor is None else list(tensor.as_numpy().reshape(-1))


@dataclass(frozen=True)
class _Respond:
    """What makes the response to one request; it outlives the request."""

    wanted: frozenset[str]
    """Outputs that the client asked for."""
    errors_alone: bool
    """Whether an error is that of its row, and the other rows are answered."""
    entry: str
    """The entry's digest."""
    width: int
    """Of an embedding."""
    request_id: str = ""
    """Under which the log names it."""

    @classmethod
    def to(cls, request: Any, *, entry: str, width: int) -> _Respond:
        """What the request wants."""
        # Not by the output ERROR: a client that names no output asks for every one.
        alone = _parameter(request, names.ROW_ERRORS)
        wanted = frozenset(request.requested_output_names())
        return cls(wanted, alone, entry, width, request_id_of(request))

    def __call__(self, answers: Sequence[Answer | PidepError] | PidepError) -> Any:
        """The response: the answers, or the first error among them."""
        if isinstance(answers, PidepError):
            log_refused(self.request_id, [answers])
            return _error(answers)
        try:
            if errors := [one for one in answers if isinstance(one, PidepError)]:
                rows = len(answers) if self.errors_alone else 0
                log_refused(self.request_id, errors, rows=rows)
            return self._response(answers)
        except Exception as error:
            wrong = as_row_error(error)
            log_refused(self.request_id, [wrong])
            return _error(wrong)

    def _response(self, answers: Sequence[Answer | PidepError]) -> Any:
        import triton_python_backend_utils as pb_utils

        good: list[Answer] = []
        none = np.zeros(0, np.float32)
        for answer in answers:
            if isinstance(answer, PidepError):
                if not self.errors_alone:
                    return _error(answer)
                good.append(Answer((), none, none, "", np.zeros(self.width, np.float32)))
            else:
                good.append(answer)
        # Rows may have different numbers of labels: shorter ones end with empty names and zeros.
        width = max((len(answer.labels) for answer in good), default=1)
        scores = np.zeros((len(good), width), dtype=np.float32)
        labels = np.full((len(good), width), b"", dtype=object)
        for at, answer in enumerate(good):
            scores[at, : len(answer.labels)] = answer.scores
            labels[at, : len(answer.labels)] = [label.encode() for label in answer.labels]
        tensors = {
            names.SCORES: scores,
            names.LABELS: labels,
            names.LABEL: np.array([[answer.label.encode()] for answer in good], dtype=object),
            names.DIGEST: np.array([[answer.digest.encode()] for answer in good], dtype=object),
            names.ENTRY: np.array([[self.entry.encode()] for _ in good], dtype=object),
            names.ERROR: np.array([[_reason(one).encode()] for one in answers], dtype=object),
        }
        # Only where asked for: an embedding is far larger than the scores.
        if names.EMBEDDING in self.wanted:
            embeddings = [answer.embedding for answer in good]
            tensors[names.EMBEDDING] = np.array(embeddings, dtype=np.float32)
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor(name, value) for name, value in tensors.items() if name in self.wanted]
        )


def _send(
    sender: Any, respond: _Respond, answers: Sequence[Answer | PidepError] | PidepError
) -> None:
    """Answer a request after its batch."""
    import triton_python_backend_utils as pb_utils

    sender.send(respond(answers), flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


def _reason(answer: Answer | PidepError) -> str:
    """An error of a row: its code and its message. Empty for an answer."""
    return f"{error_code(answer)}: {answer}" if isinstance(answer, PidepError) else ""


def _error(error: PidepError) -> Any:
    import triton_python_backend_utils as pb_utils

    code = getattr(pb_utils.TritonError, error_code(error))
    triton_error = pb_utils.TritonError(str(error), code)
    return pb_utils.InferenceResponse(output_tensors=[], error=triton_error)
