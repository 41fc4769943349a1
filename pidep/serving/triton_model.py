"""What Triton Server's Python backend calls: requests to rows, answers to responses. No torch."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pidep.artifacts import names
from pidep.errors import PidepError, ServingError
from pidep.inputs.decoding import read_candidates, read_decoding
from pidep.inputs.row import Row
from pidep.inputs.template import read_columns
from pidep.runtime.answer import Answer
from pidep.runtime.bank import Bank, Residents
from pidep.runtime.isolate import as_row_error
from pidep.runtime.merged import Merged
from pidep.serving.limits import Limits
from pidep.serving.metrics import Metrics, error_code
from pidep.serving.routed_bank import RoutedBank
from pidep.serving.store import ExpertStore
from pidep.serving.watcher import Watcher

__all__ = ["TritonPythonModel"]

AnswerBatch = Callable[[Sequence["Asked"]], Sequence[Answer | PidepError]]
"""Rows to answers."""


class Asked(NamedTuple):
    """One row of a request."""

    row: Row
    expert: str = ""
    """What the row names; empty for a merged model."""
    key: bytes = b""
    """What decides between the versions of the name; empty for the row's content."""


class TritonPythonModel:
    """One instance per model; one batch at a time."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the graph and, for a bank, start following the expert store."""
        # Triton Server passes its stub's standard error on to its own log.
        logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="pidep: %(message)s")
        folder = Path(args["model_repository"]) / args["model_version"]
        self._limits = Limits.from_environment()
        self._metrics = Metrics(args.get("model_name", folder.parent.name))
        self._watcher: Watcher | None = None
        self._noted: Residents | None = None
        self._has_expert = (folder / names.BANK_RECORD).is_file()
        if self._has_expert:
            bank = Bank(folder)
            watcher = Watcher(bank, ExpertStore(bank.store))
            watcher.start()
            self._watcher = watcher
            self._answer: AnswerBatch = _bank_answers(bank, watcher)
            self._entry, self._width = bank.record.entry_digest or "", bank.record.hidden_size
            self._bytes_per_slot = bank.arena.bytes_per_slot
            self._note_swap(watcher)
        else:
            merged = Merged(folder)
            self._answer = lambda asked: merged.run([one.row for one in asked])
            self._entry, self._width = merged.record.entry_digest or "", 0

    def is_ready(self) -> bool:
        """Whether the model answers and follows its store. Triton Server asks from 26.03 on."""
        return self._watcher is None or self._watcher.is_alive

    def execute(self, requests: list[Any]) -> list[Any]:
        """One batch over all requests; exactly one response for each.

        Triton Server fails the whole batch where a response is missing or an exception escapes.
        So whatever is wrong with one request is that request's response, and the others are
        answered.
        """
        rows: list[Asked] = []
        spans: list[slice | PidepError] = []
        for request in requests:
            try:
                asked = self._read(request)
            except Exception as error:
                spans.append(as_row_error(error))
                continue
            spans.append(slice(len(rows), len(rows) + len(asked)))
            rows += asked
        started = time.perf_counter()
        answers = self._answer(rows) if rows else []
        seconds = time.perf_counter() - started
        self._metrics.batch([one.expert for one in rows], answers, seconds=seconds)
        self._metrics.refused([span for span in spans if isinstance(span, PidepError)])
        if self._watcher is not None:
            self._note_swap(self._watcher)
        return [
            self._response(request, span if isinstance(span, PidepError) else answers[span])
            for span, request in zip(spans, requests, strict=True)
        ]

    def _response(self, request: Any, answers: Sequence[Answer | PidepError] | PidepError) -> Any:
        """The response to one request: its answers, or its error."""
        if isinstance(answers, PidepError):
            return _error(answers)
        try:
            wanted = request.requested_output_names()
            # Not by the output ERROR: a client that names no output asks for every one.
            alone = _parameter(request, names.ROW_ERRORS)
            return _respond(
                answers, wanted, entry=self._entry, errors_alone=alone, width=self._width
            )
        except Exception as error:
            return _error(as_row_error(error))

    def _note_swap(self, watcher: Watcher) -> None:
        """Set the gauges where the experts were replaced since the last batch.

        Not on the watcher's thread: the server's stub takes metrics from its own thread.
        """
        residents = watcher.serving.residents
        if residents is self._noted:
            return
        self._noted = residents
        slots = {slot.number for one in residents.by_name.values() for slot in one.slots}
        self._metrics.residents(
            residents.digests,
            resident_bytes=len(slots) * self._bytes_per_slot,
            refused_versions=len(residents.refused),
            store_revision=watcher.status()["revision"] or 0,
        )

    def finalize(self) -> None:
        """Stop following the store."""
        if self._watcher is not None:
            self._watcher.stop()
        self._noted = None
        self._metrics.close()

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
        if not self._has_expert:
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


def _bank_answers(bank: Bank, watcher: Watcher) -> AnswerBatch:
    """Answers of the bank; a row of `@status` gets the watcher's state."""
    routed = RoutedBank(bank)

    def answers(asked: Sequence[Asked]) -> Sequence[Answer | PidepError]:
        # Read once a batch: a swap never changes a running batch.
        serving = watcher.serving
        others = [at for at, one in enumerate(asked) if one.expert != names.STATUS]
        found = routed.run(
            serving,
            [asked[at].row for at in others],
            experts=[asked[at].expert for at in others],
            keys=[asked[at].key for at in others],
        )
        of_row = dict(zip(others, found, strict=True))
        if len(others) == len(asked):
            return found
        state = {**watcher.status(), "rollouts": routed.status(serving.rollouts)}
        return [of_row[at] if at in of_row else _status(bank, state) for at in range(len(asked))]

    return answers


def _status(bank: Bank, state: Mapping[str, Any]) -> Answer:
    """The server's state, in the place of a label."""
    one = np.ones(1, np.float32)
    # The rows of a response have embeddings of one width.
    nowhere = np.zeros(bank.record.hidden_size, np.float32)
    entry = bank.record.entry_digest or ""
    label = json.dumps({**state, "entry": entry})
    return Answer((label,), one, one, entry, nowhere)


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


def _respond(
    answers: Sequence[Answer | PidepError],
    wanted: Sequence[str],
    *,
    entry: str,
    errors_alone: bool,
    width: int,
) -> Any:
    """The response to one request: its answers, or the first error among them.

    Args:
        wanted: outputs that the client asked for.
        entry: the entry's digest.
        errors_alone: whether an error is that of its row, and the other rows are answered.
        width: of an embedding.
    """
    import triton_python_backend_utils as pb_utils

    good: list[Answer] = []
    none = np.zeros(0, np.float32)
    for answer in answers:
        if isinstance(answer, PidepError):
            if not errors_alone:
                return _error(answer)
            good.append(Answer((), none, none, "", np.zeros(width, np.float32)))
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
        names.ENTRY: np.array([[entry.encode()] for _ in good], dtype=object),
        names.ERROR: np.array(
            [[_reason(one).encode() if isinstance(one, PidepError) else b""] for one in answers],
            dtype=object,
        ),
    }
    # Only where asked for: an embedding is far larger than the scores.
    if names.EMBEDDING in wanted:
        embeddings = [answer.embedding for answer in good]
        tensors[names.EMBEDDING] = np.array(embeddings, dtype=np.float32)
    return pb_utils.InferenceResponse(
        [pb_utils.Tensor(name, value) for name, value in tensors.items() if name in wanted]
    )


def _reason(error: PidepError) -> str:
    """An error of a row: its code and its message."""
    return f"{error_code(error)}: {error}"


def _error(error: PidepError) -> Any:
    import triton_python_backend_utils as pb_utils

    code = getattr(pb_utils.TritonError, error_code(error))
    triton_error = pb_utils.TritonError(str(error), code)
    return pb_utils.InferenceResponse(output_tensors=[], error=triton_error)
