"""What Triton Server's Python backend calls; picks bank or merged by the record beside it. No torch."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pidep.errors import ExpertError, PidepError, ServingError
from pidep.runtime.bank import Answer, Bank
from pidep.runtime.merged import Merged
from pidep.runtime.reader import Question
from pidep.serving.store import ExpertStore
from pidep.serving.watcher import Watcher

__all__ = ["TritonPythonModel"]

Run = Callable[[Sequence[Question], Sequence[str]], Sequence[Answer | PidepError]]


def _bytes(request: Any, name: str) -> list[bytes] | None:
    import triton_python_backend_utils as pb_utils

    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return None if tensor is None else list(tensor.as_numpy().reshape(-1))


def _strings(request: Any, name: str) -> list[str]:
    values = _bytes(request, name)
    if values is None:
        raise ServingError(f"input {name} is missing")
    try:
        return [value.decode("utf-8") for value in values]
    except UnicodeDecodeError as error:
        raise ServingError(f"input {name}: not UTF-8 (byte {error.start}); encode the text as UTF-8") from error


def _questions(request: Any) -> list[Question]:
    texts, images = _strings(request, "TEXT"), _bytes(request, "IMAGE")
    if images is None:
        images = [b""] * len(texts)
    if len(images) != len(texts):
        raise ServingError(f"TEXT has {len(texts)} rows, IMAGE {len(images)}; give one image a row, empty where there is none")
    return [Question(text, image, f"row {row}") for row, (text, image) in enumerate(zip(texts, images, strict=True), 1)]


class TritonPythonModel:
    """One instance per model; one batch at a time."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the graph and, for a bank, start following the expert store."""
        logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="pidep: %(message)s")
        folder = Path(args["model_repository"]) / args["model_version"]
        self._watcher: Watcher | None = None
        self._has_expert = (folder / "bank.json").is_file()
        if self._has_expert:
            bank = Bank(folder)
            watcher = Watcher(bank, ExpertStore(bank.spec.store))
            watcher.start()
            self._watcher = watcher
            self._run: Run = lambda questions, names: bank.run(watcher.generation, questions, names)
        else:
            merged = Merged(folder)
            self._run = lambda questions, names: merged.run(questions)

    def execute(self, requests: list[Any]) -> list[Any]:
        """One batch over all requests; exactly one response for each, an error only for the request that earned it."""
        questions: list[Question] = []
        names: list[str] = []
        spans: list[tuple[int, int] | PidepError] = []
        for request in requests:
            try:
                rows = _questions(request)
                experts = _strings(request, "EXPERT") if self._has_expert else [""] * len(rows)
                if len(rows) != len(experts):
                    raise ServingError(f"TEXT has {len(rows)} rows, EXPERT {len(experts)}; give one expert a row")
                spans.append((len(questions), len(questions) + len(rows)))
                questions += rows
                names += experts
            except PidepError as error:
                spans.append(error)
        answers = self._run(questions, names) if questions else []
        return [
            self._respond(answers[span[0] : span[1]], request.requested_output_names()) if isinstance(span, tuple) else _error(span)
            for span, request in zip(spans, requests, strict=True)
        ]

    def finalize(self) -> None:
        """Stop following the store."""
        if self._watcher is not None:
            self._watcher.stop()

    @staticmethod
    def _respond(answers: Sequence[Answer | PidepError], wanted: Sequence[str]) -> Any:
        import triton_python_backend_utils as pb_utils

        good: list[Answer] = []
        for answer in answers:
            if isinstance(answer, PidepError):
                return _error(answer, not_found=isinstance(answer, ExpertError))
            good.append(answer)
        width = max((len(answer.labels) for answer in good), default=1)
        scores = np.zeros((len(good), width), dtype=np.float32)
        labels = np.full((len(good), width), b"", dtype=object)
        for row, answer in enumerate(good):
            scores[row, : len(answer.labels)] = answer.scores
            labels[row, : len(answer.labels)] = [label.encode() for label in answer.labels]
        best = np.array([[answer.label.encode()] for answer in good], dtype=object)
        digest = np.array([[answer.digest.encode()] for answer in good], dtype=object)
        tensors = {"SCORES": scores, "LABELS": labels, "LABEL": best, "DIGEST": digest}
        if "EMBEDDING" in wanted:
            tensors["EMBEDDING"] = np.array([answer.embedding for answer in good], dtype=np.float32)
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, value) for name, value in tensors.items() if name in wanted])


def _error(error: PidepError, *, not_found: bool = False) -> Any:
    import triton_python_backend_utils as pb_utils

    code = pb_utils.TritonError.NOT_FOUND if not_found else pb_utils.TritonError.INVALID_ARG
    return pb_utils.InferenceResponse(output_tensors=[], error=pb_utils.TritonError(str(error), code))
