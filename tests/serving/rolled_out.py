"""A bank's model in this process, asked as Triton Server asks it, and behind the stub server."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pidep.experts.folder import Expert
from pidep.serving.triton_model import TritonPythonModel
from tests.serving import backend_utils
from tests.serving.experts import small_expert
from tests.serving.stub_server import Asked, Refused, Stub, stub_server

LONG = "a a a a a a a a a a a a"
"""A text on which `failing_expert` overflows; it answers probe rows."""


def failing_expert() -> Expert:
    """An expert that is finite on short texts, and not on `LONG`."""
    factors = {
        "lora_A": np.full((2, 4), 1.2, np.float32),
        "lora_B": np.ones((4, 2), np.float32),
    }
    embeddings = np.zeros((2, 4), np.float32)
    embeddings[0, 0] = 1.6e37
    return replace(small_expert(), sites={"layer.0": factors}, label_embeddings=embeddings)


def model_of(repo: Path, monkeypatch: pytest.MonkeyPatch) -> TritonPythonModel:
    """The model of a repository; `finalize` stops it."""
    backend_utils.install(monkeypatch)
    model = TritonPythonModel()
    model.initialize({"model_repository": str(repo / "pidep_bank"), "model_version": "1"})
    return model


def ask(
    model: TritonPythonModel, texts: Sequence[str], expert: str, keys: Sequence[str] = ()
) -> list[str]:
    """The digest that answers each text, in one batch."""
    tensors = {
        "TEXT": [text.encode() for text in texts],
        "EXPERT": [expert.encode()] * len(texts),
    }
    if keys:
        tensors["KEY"] = [key.encode() for key in keys]
    (response,) = backend_utils.responses(model, [backend_utils.Request(tensors)])
    assert response.error is None, response.error.text
    return [digest.decode() for (digest,) in response.arrays["DIGEST"]]


def status(model: TritonPythonModel) -> dict[str, Any]:
    """The server's state."""
    (response,) = backend_utils.responses(
        model, [backend_utils.Request({"TEXT": [b"s"], "EXPERT": [b"@status"]})]
    )
    found: dict[str, Any] = json.loads(response.arrays["LABEL"][0, 0])
    return found


@contextmanager
def behind(model: TritonPythonModel) -> Iterator[Stub]:
    """The model behind the stub server's gRPC."""

    def answer(asked: Asked) -> dict[str, np.ndarray]:
        (response,) = backend_utils.responses(
            model, [backend_utils.Request(asked.tensors, tuple(asked.outputs))]
        )
        if response.error is not None:
            raise Refused(response.error.text)
        arrays: dict[str, np.ndarray] = response.arrays
        return arrays

    with stub_server("grpc", answer) as stub:
        yield stub
