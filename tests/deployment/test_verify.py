"""`pidep verify` finds every way in which a server answers otherwise than the gate has seen."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pidep.artifacts.gate import GateRecord, GateRow, GateSample
from pidep.deployment.verify import require_verified, verify_entry
from pidep.errors import ServingError
from pidep.runtime import softmax
from tests.conftest import png
from tests.serving.stub_server import Asked, Stub, stub_server

LOGITS = {"good": (2.0, -1.0), "bad": (-2.0, 1.0), "so so": (0.1, 0.0)}
SAMPLE = GateSample(
    digest="sha256:film",
    metric="accuracy",
    labels=("positive", "negative"),
    logit_scale=20.0,
    rows=tuple(GateRow(text=text) for text in LOGITS),
    right=(0, 1, 0),
    logits=tuple(LOGITS.values()),
)
RECORD = GateRecord(
    recipe="onnx-cpu",
    max_abs=0.01,
    argmax_flips=0,
    metric_drop=0.0,
    entry="sha256:entry",
    with_expert=True,
    experts={"film": SAMPLE},
)


class Served:
    """What the server answers; a test changes it."""

    def __init__(self) -> None:
        self.logits = dict(LOGITS)
        self.digest, self.entry = "sha256:film", "sha256:entry"
        self.labels = ("positive", "negative")
        self.images: list[bytes] = []

    def __call__(self, asked: Asked) -> dict[str, np.ndarray]:
        texts = [text.decode() for text in asked.tensors["TEXT"]]
        self.images += asked.tensors.get("IMAGE", [])
        scores = np.array([softmax(np.array(self.logits[text])) for text in texts], np.float32)

        def column(value: str) -> np.ndarray:
            return np.array([[value.encode()] for _ in texts], object)

        return {
            "SCORES": scores,
            "LABELS": np.array([[one.encode() for one in self.labels] for _ in texts], object),
            "LABEL": column(self.labels[0]),
            "DIGEST": column(self.digest),
            "ENTRY": column(self.entry),
        }


@pytest.fixture
def served() -> Served:
    return Served()


@pytest.fixture
def stub(served: Served) -> Iterator[Stub]:
    with stub_server("grpc", served) as stub:
        yield stub


def checked(folder: Path, stub: Stub, record: GateRecord = RECORD) -> Any:
    entry = folder / "pidep_bank"
    entry.mkdir(exist_ok=True)
    record.write(entry)
    return verify_entry(entry, stub.url)


def test_a_server_that_answers_as_pytorch_did_is_verified(
    tmp_path: Path, served: Served, stub: Stub
) -> None:
    served.logits["good"] = (2.0 + 5e-3, -1.0 - 5e-3)  # each logit within the bound
    (found,) = checked(tmp_path, stub)
    assert (found.name, found.rows, found.argmax_flips, found.fault) == ("film", 3, 0, "")
    assert 0 < found.max_abs < 0.005
    assert (found.metric_torch, found.metric_served) == (1.0, 1.0)
    require_verified([found])
    assert [asked.tensors["EXPERT"] for asked in stub.asked] == [[b"film"] * 3]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"digest": "sha256:other"},
            "sha256:other answers, the gate compared sha256:film…; it was",
        ),
        ({"entry": "sha256:new"}, "entry sha256:new… answers, this folder is sha256:entry…"),
        ({"logits": {**LOGITS, "good": (2.0, -0.5)}}, "a score is off by .*, the recipe allows"),
        ({"labels": ("yes", "no")}, "a score is off by nan, the recipe allows"),
    ],
)
def test_what_differs_is_named(
    tmp_path: Path, served: Served, stub: Stub, change: dict[str, Any], message: str
) -> None:
    vars(served).update(change)
    found = checked(tmp_path, stub)
    with pytest.raises(ServingError, match=rf"^expert 'film': {message}"):
        require_verified(found)


def test_flips_and_the_metric_have_bounds_of_their_own(
    tmp_path: Path, served: Served, stub: Stub
) -> None:
    served.logits["so so"] = (0.0, 0.1)
    loose = RECORD.model_copy(update={"max_abs": 1.0})
    (found,) = checked(tmp_path, stub, loose)
    assert found.fault == "1 rows have another label than in PyTorch, the recipe allows 0"
    (found,) = checked(tmp_path, stub, loose.model_copy(update={"argmax_flips": 1}))
    assert found.fault.startswith("accuracy is lower by 0.333, the recipe allows 0")
    with pytest.raises(ServingError, match=r"accuracy is lower .* \(and 1 more\)$"):
        require_verified([found, replace(found, name="other")])


def test_images_travel_as_they_were_compared(tmp_path: Path, served: Served, stub: Stub) -> None:
    image = png(5)
    row = GateRow(text="good", image=base64.b64encode(image).decode())
    sample = SAMPLE.model_copy(update={"rows": (row,), "right": (0,), "logits": (LOGITS["good"],)})
    (found,) = checked(tmp_path, stub, RECORD.model_copy(update={"experts": {"film": sample}}))
    assert found.fault == ""
    assert served.images == [image]


def test_a_folder_without_a_gate_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(ServingError, match=r"gate\.json: no such file; give a model's folder"):
        verify_entry(tmp_path, "127.0.0.1:1")
