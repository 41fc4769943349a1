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
    opened = onnxruntime.InferenceSession

    def recording(data: bytes, *_: Any, providers: Any, **__: Any) -> Any:
        given.extend(providers)
        return opened(data, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(onnxruntime, "InferenceSession", recording)
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


@pytest.mark.parametrize("cuda", [False, True])
def test_fusions_that_slow_the_cpu_are_off_where_the_cpu_computes(
    graph: Path, monkeypatch: pytest.MonkeyPatch, cuda: bool
) -> None:
    given: list[Any] = []
    names = ["CUDAExecutionProvider"] * cuda + ["CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: names)

    class Opened:
        def __init__(self, *_: Any, disabled_optimizers: Any, **__: Any) -> None:
            given.append(disabled_optimizers)

        def get_providers(self) -> list[str]:
            return names

    monkeypatch.setattr(onnxruntime, "InferenceSession", Opened)
    open_session(graph, file_digest(graph))
    assert given == [None if cuda else ["SkipLayerNormFusion", "BiasGeluFusion"]]


def test_the_sum_before_a_layer_norm_is_not_fused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the names that this onnxruntime knows: an unknown name would be dropped silently."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 3, 4]) for name in "aby"]
    scale, bias = (helper.make_tensor(name, TensorProto.FLOAT, [4], [1.0] * 4) for name in "st")
    nodes = [
        helper.make_node("Add", ["a", "b"], ["x"]),
        helper.make_node("LayerNormalization", ["x", "s", "t"], ["y"], axis=-1),
    ]
    graph = helper.make_graph(nodes, "norm", ends[:2], ends[2:], [scale, bias])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    options = onnxruntime.SessionOptions
    written = tmp_path / "optimised.onnx"

    def recording() -> Any:
        made = options()
        made.optimized_model_filepath = str(written)
        return made

    monkeypatch.setattr(onnxruntime, "SessionOptions", recording)
    open_session(path, file_digest(path))
    kept = {node.op_type for node in onnx.load(written).graph.node}
    onnxruntime.InferenceSession(path.read_bytes(), recording())
    fused = {node.op_type for node in onnx.load(written).graph.node}
    assert "SkipLayerNormalization" in fused - kept


def test_a_gpu_that_cannot_be_used_is_said(
    graph: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As onnxruntime-gpu behaves on a machine without a driver: it falls back without an error."""
    opened = onnxruntime.InferenceSession
    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPU"]
    )
    monkeypatch.setattr(
        onnxruntime,
        "InferenceSession",
        lambda data, options, **_: opened(data, options, providers=["CPUExecutionProvider"]),
    )
    session = open_session(graph, file_digest(graph))
    assert session.get_providers() == ["CPUExecutionProvider"]
    assert "could not use CUDA here, so the graph runs on the CPU" in caplog.text


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
