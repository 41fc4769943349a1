"""How graphs are opened: execution providers and their options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from onnxruntime.capi import onnxruntime_inference_collection as collection

from pidep.files.digest import file_digest
from pidep.runtime.session import open_session


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """A graph that doubles one number."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    node = helper.make_node("Add", ["x", "x"], ["y"])
    model = helper.make_model(
        helper.make_graph([node], "double", ends[:1], ends[1:]),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=9,
    )
    onnx.save(model, tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def test_cuda_computes_in_fp32(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TF32 is on by default, and its error can exceed the gate's bound."""
    given: list[Any] = []
    monkeypatch.setattr(
        onnxruntime,
        "get_available_providers",
        lambda: ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"],
    )
    monkeypatch.setattr(
        onnxruntime, "InferenceSession", lambda *_, providers: given.extend(providers)
    )
    open_session(graph, file_digest(graph))
    assert given == [("CUDAExecutionProvider", {"use_tf32": 0}), ("CPUExecutionProvider", {})]


def test_the_option_reaches_onnxruntimes_native_session(
    graph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """onnxruntime drops nothing on the way; its CUDA provider reads `use_tf32` from this dict."""
    reached: list[Any] = []

    class Native(collection.C.InferenceSession):  # type: ignore[misc]
        def initialize_session(self, names: Any, options: Any, disabled: Any) -> None:
            reached.append(dict(zip(names, options, strict=True)))
            super().initialize_session(["CPUExecutionProvider"], [{}], disabled)

    names = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    for module in (onnxruntime, collection.C):
        monkeypatch.setattr(module, "get_available_providers", lambda: names)
    monkeypatch.setattr(collection.C, "InferenceSession", Native)
    open_session(graph, file_digest(graph))
    assert reached == [{"CUDAExecutionProvider": {"use_tf32": "0"}, "CPUExecutionProvider": {}}]


@pytest.mark.gpu
@pytest.mark.skipif(
    "CUDAExecutionProvider" not in onnxruntime.get_available_providers(),
    reason="needs onnxruntime-gpu",
)
def test_cuda_itself_says_that_tf32_is_off(graph: Path) -> None:
    options = open_session(graph, file_digest(graph)).get_provider_options()
    assert options["CUDAExecutionProvider"]["use_tf32"] == "0"


def test_a_graph_runs_on_the_providers_of_this_machine(graph: Path) -> None:
    session = open_session(graph, file_digest(graph))
    assert session.get_providers()[-1] == "CPUExecutionProvider"
    (found,) = session.run(None, {"x": np.array([3.0], np.float32)})
    assert found.tolist() == [6.0]
