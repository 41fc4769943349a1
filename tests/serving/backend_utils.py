"""The parts of `triton_python_backend_utils` that the shim uses.

The real module exists inside Triton Server only. `tests/e2e` runs the shim there.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from queue import SimpleQueue
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import pytest

FINAL = 1


@dataclass
class Tensor:
    """A named array."""

    tensor_name: str
    array: np.ndarray

    def name(self) -> str:
        """As in Triton Server."""
        return self.tensor_name

    def as_numpy(self) -> np.ndarray:
        """As in Triton Server."""
        return self.array


class TritonError:
    """A message and a code."""

    NOT_FOUND, INVALID_ARG, INTERNAL = "NOT_FOUND", "INVALID_ARG", "INTERNAL"
    UNAVAILABLE = "UNAVAILABLE"

    def __init__(self, message: str, code: str) -> None:
        self.text, self.code = message, code


@dataclass
class InferenceResponse:
    """Tensors or an error."""

    output_tensors: list[Tensor]
    error: TritonError | None = None

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """Outputs by name."""
        return {tensor.name(): tensor.array for tensor in self.output_tensors}


class Sender:
    """Keeps the response that came late."""

    def __init__(self) -> None:
        self.sent: SimpleQueue[InferenceResponse] = SimpleQueue()
        self.cancelled = False

    def send(self, response: InferenceResponse, flags: int) -> None:
        """As in Triton Server, where nothing may follow the final response."""
        assert flags == FINAL
        self.sent.put(response)

    def is_cancelled(self) -> bool:
        """As in Triton Server: asked after the final response, it would end the server."""
        assert self.sent.empty()
        return self.cancelled


@dataclass
class Request:
    """What a client sent: BYTES tensors of shape [B, 1]."""

    tensors: dict[str, list[bytes]]
    wanted: tuple[str, ...] = ("SCORES", "LABELS", "LABEL", "DIGEST")
    given: str = "{}"
    """Parameters, as the text of a JSON object."""
    own_id: str = ""
    timeout_us: int = 0
    """Microseconds that it may take; 0 without a limit."""

    def __post_init__(self) -> None:
        self.sender = Sender()

    def get_response_sender(self) -> Sender:
        """As in Triton Server."""
        return self.sender

    def timeout(self) -> int:
        """As in Triton Server."""
        return self.timeout_us

    def request_id(self) -> str:
        """As in Triton Server."""
        return self.own_id

    def parameters(self) -> str:
        """As in Triton Server."""
        return self.given

    def requested_output_names(self) -> list[str]:
        """As in Triton Server."""
        return list(self.wanted)


def get_input_tensor_by_name(request: Request, name: str) -> Tensor | None:
    """As in Triton Server: None where the request has no such input."""
    values = request.tensors.get(name)
    if values is None:
        return None
    return Tensor(name, np.array([[value] for value in values], dtype=object))


class MetricFamily:
    """Counts as Triton Server's families do, and keeps the values for the test."""

    COUNTER, GAUGE, HISTOGRAM = "COUNTER", "GAUGE", "HISTOGRAM"
    values: ClassVar[dict[tuple[str, str], float]] = {}
    """Family and its labels, without the model's, to the value; of a histogram, the observations.
    """

    def __init__(self, name: str, description: str, kind: str) -> None:
        assert description
        self.name, self.kind = name, kind

    def Metric(self, labels: dict[str, str], buckets: list[float] | None = None) -> Metric:
        """As in Triton Server."""
        assert (buckets is not None) == (self.kind == self.HISTOGRAM)
        own = {key: value for key, value in labels.items() if key != "model"}
        return Metric((self.name, " ".join(f"{key}={value}" for key, value in own.items())))


@dataclass
class Metric:
    """One value."""

    key: tuple[str, str]

    def increment(self, by: float) -> None:
        """As in Triton Server."""
        MetricFamily.values[self.key] = MetricFamily.values.get(self.key, 0) + by

    def set(self, value: float) -> None:
        """As in Triton Server."""
        MetricFamily.values[self.key] = value

    def observe(self, _: float) -> None:
        """As in Triton Server."""
        self.increment(1)

    def __del__(self) -> None:
        MetricFamily.values.pop(self.key, None)


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the shim import this module."""
    module: Any = ModuleType("triton_python_backend_utils")
    module.Tensor, module.TritonError = Tensor, TritonError
    module.InferenceResponse = InferenceResponse
    module.MetricFamily = MetricFamily
    module.TRITONSERVER_RESPONSE_COMPLETE_FINAL = FINAL
    MetricFamily.values.clear()
    module.get_input_tensor_by_name = get_input_tensor_by_name
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", module)


def counted(family: str) -> dict[str, float]:
    """Labels to the value, of the metrics of a family, when no batch is being counted any more.

    A model counts a batch after its replies.
    """
    before: dict[tuple[str, str], float] = {}
    while before != (before := dict(MetricFamily.values)):
        time.sleep(0.02)
    return {labels: value for (name, labels), value in before.items() if name == family}


def responses(model: Any, requests: list[Any]) -> list[InferenceResponse]:
    """What the model answers to requests that come together, now or later."""
    found = model.execute(requests)
    return [
        request.sender.sent.get(timeout=20) if response is None else response
        for request, response in zip(requests, found, strict=True)
    ]
