"""Rows 35 and 40, and more: administration needs a key, other calls are open."""

from __future__ import annotations

import base64
import importlib
import json
import os
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from pidep.serving.server import TritonServer, free_ports
from tests.reliability.conftest import Row

pytestmark = pytest.mark.server
PROTOCOLS = ("grpc", "http")

DOUBLE = """
import triton_python_backend_utils as utils

class TritonPythonModel:
    def execute(self, requests):
        inputs = [utils.get_input_tensor_by_name(request, "X").as_numpy() for request in requests]
        return [utils.InferenceResponse([utils.Tensor("Y", 2 * x)]) for x in inputs]
"""
INTRUDER = "import pathlib\npathlib.Path({mark!r}).write_text('ran')\n" + DOUBLE
CONFIG = {
    "backend": "python",
    "max_batch_size": 0,
    "input": [{"name": "X", "data_type": "TYPE_FP32", "dims": [1]}],
    "output": [{"name": "Y", "data_type": "TYPE_FP32", "dims": [1]}],
}

OPEN_PAGES = [
    "v2",
    "v2/health/live",
    "v2/health/ready",
    "v2/models/double",
    "v2/models/double/ready",
]
ADMINISTRATIVE_PAGES = [
    ("POST", "v2/repository/index"),
    ("POST", "v2/repository/models/double/load"),
    ("POST", "v2/repository/models/double/unload"),
    ("GET", "v2/models/double/config"),
    ("GET", "v2/models/double/versions/1/config"),
    ("GET", "v2/models/stats"),
    ("GET", "v2/models/double/stats"),
    ("GET", "v2/logging"),
    ("POST", "v2/logging"),
    ("GET", "v2/trace/setting"),
    ("POST", "v2/trace/setting"),
    ("POST", "v2/models/double/trace/setting"),
    ("GET", "v2/systemsharedmemory/status"),
    ("POST", "v2/systemsharedmemory/region/mine/register"),
    ("POST", "v2/systemsharedmemory/unregister"),
    ("GET", "v2/cudasharedmemory/status"),
    ("POST", "v2/cudasharedmemory/region/mine/register"),
    ("POST", "v2/cudasharedmemory/unregister"),
]
OTHER_SPELLINGS = [
    "v2/repository/index/",
    "v2//repository/index",
    "//v2/repository/index",
    "v2/repository/%69ndex",
    "v2/%2e%2e/v2/repository/index",
    "v2/repository/mine/index",
    "v2/repository/mine/models/double/unload",
    "v2/repository/models/%64ouble/unload",
    "v2/repository/models/double/versions/1/unload",
    "V2/repository/models/double/unload",
    "v2/repository/models/double/unload?x=1",
    "v2/models/double/versions/1/trace/setting",
    "v2/systemsharedmemory/region/mine/unregister",
    "v2/cudasharedmemory/region/mine/unregister",
    "invocations",
    "predict",
    "models",
]
"""Ways past a check of the path alone, and paths of SageMaker and Vertex AI."""
OPEN_CALLS: list[tuple[str, tuple[Any, ...]]] = [
    ("is_server_live", ()),
    ("is_server_ready", ()),
    ("is_model_ready", ("double",)),
    ("get_server_metadata", ()),
    ("get_model_metadata", ("double",)),
]
HARMLESS_CALLS: list[tuple[str, tuple[Any, ...]]] = [
    ("get_model_repository_index", ()),
    ("get_model_config", ("double",)),
    ("get_inference_statistics", ()),
    ("get_log_settings", ()),
    ("get_trace_settings", ()),
    ("get_system_shared_memory_status", ()),
    ("update_log_settings", ({"log_verbose_level": 0},)),
    ("update_trace_settings", ("double", {"trace_level": ["OFF"]})),
    ("unregister_system_shared_memory", ()),
]
OTHER_CALLS: list[tuple[str, tuple[Any, ...]]] = [
    ("load_model", ("double",)),
    ("unload_model", ("double",)),
    ("register_system_shared_memory", ("mine", "/mine", 4)),
    # Without a GPU, the server refuses these three calls with the key as well.
    ("get_cuda_shared_memory_status", ()),
    ("register_cuda_shared_memory", ("mine", b"aGFuZGxl", 0, 4)),
    ("unregister_cuda_shared_memory", ()),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A server with a model that needs no export: it doubles a number."""
    repo = tmp_path_factory.mktemp("restricted") / "model_repo"
    version = repo / "double" / "1"
    version.mkdir(parents=True)
    (repo / "double" / "config.pbtxt").write_text(
        'name: "double"\nbackend: "python"\nmax_batch_size: 0\n'
        'input [{ name: "X" data_type: TYPE_FP32 dims: [1] }]\n'
        'output [{ name: "Y" data_type: TYPE_FP32 dims: [1] }]\n'
    )
    (version / "model.py").write_text(DOUBLE)
    for name in ("merged.json", "model.onnx"):
        (version / name).write_text("{}")
    with pytest.MonkeyPatch.context() as patch:
        vertex = {"MODE": "PREDICTION", "HTTP_PORT": str(free_ports().http)}
        for name, value in {**vertex, "PREDICT_ROUTE": "/p", "HEALTH_ROUTE": "/h"}.items():
            patch.setenv(f"AIP_{name}", value)
        with TritonServer(repo, free_ports(), ready_within_s=100) as started:
            yield started


def status(
    server: TritonServer, method: str, path: str, body: bytes = b"{}", **headers: str
) -> int:
    request = urllib.request.Request(
        f"http://{server.http_url}/{path}",
        body if method == "POST" else None,
        headers,
        method=method,
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code


def native(server: TritonServer, protocol: str) -> Any:
    """NVIDIA's own client of a protocol."""
    package = importlib.import_module(f"tritonclient.{protocol}")
    return package.InferenceServerClient(server.grpc_url if protocol == "grpc" else server.http_url)


def intruder(mark: Path) -> tuple[str, dict[str, bytes]]:
    """Configuration and files of a model that runs its own code when it is loaded, and leaves a
    mark.
    """
    code = INTRUDER.format(mark=str(mark)).encode()
    return json.dumps({"name": "intruder", **CONFIG}), {"file:1/model.py": code}


def evict(server: TritonServer) -> None:
    """Unload the intruder. The server is not ready while the model's process ends."""
    key = server.admin_headers("http")
    assert status(server, "POST", "v2/repository/models/intruder/unload", **key) == 200
    deadline = time.monotonic() + 60
    while status(server, "GET", "v2/health/ready") != 200:
        assert time.monotonic() < deadline, server.last_error()
        time.sleep(0.05)


def test_a_web_page_cannot_load_code(server: TritonServer, tmp_path: Path) -> None:
    config, files = intruder(tmp_path / "mark")
    encoded = {name: base64.b64encode(content).decode() for name, content in files.items()}
    body = json.dumps({"parameters": {"config": config, **encoded}}).encode()
    # A browser sends such a request to another site without asking that site first.
    from_a_page = {"Content-Type": "text/plain", "Origin": "http://evil.example"}
    load = ("POST", "v2/repository/models/intruder/load", body)
    assert status(server, *load, **from_a_page) == 403
    guess = dict.fromkeys(server.admin_headers("http"), "guess")
    assert status(server, *load, **from_a_page, **guess) == 403
    assert not (tmp_path / "mark").exists()
    # The same request with the key runs the code, so only the key made the difference.
    assert status(server, *load, **from_a_page, **server.admin_headers("http")) == 200
    assert (tmp_path / "mark").exists()
    evict(server)


def test_code_over_grpc_needs_the_key(server: TritonServer, tmp_path: Path) -> None:
    config, files = intruder(tmp_path / "mark")
    with native(server, "grpc") as client:
        for headers in ({}, dict.fromkeys(server.admin_headers(), "guess")):
            with pytest.raises(InferenceServerException, match="This protocol is restricted"):
                client.load_model("intruder", config=config, files=files, headers=headers)
        assert not (tmp_path / "mark").exists()
        client.load_model("intruder", config=config, files=files, headers=server.admin_headers())
        assert (tmp_path / "mark").exists()
    evict(server)


def test_row_40_nothing_but_inference(row: Row, server: TritonServer) -> None:
    for method, path in ADMINISTRATIVE_PAGES:
        assert status(server, method, path) == 403, path
    # Ways past a check of the path alone, and the paths of SageMaker and Vertex AI.
    for path in OTHER_SPELLINGS:
        assert status(server, "POST", path) in (400, 403, 404, 405), path
    tried = len(ADMINISTRATIVE_PAGES) + len(OTHER_SPELLINGS)
    row.shows(
        "without the secret: load, unload, trace, log settings, shared memory, SageMaker and "
        "Vertex paths are refused",
        target="all refused",
        measured=f"{tried} paths refused",
        met=True,
    )


def test_refused_administration_changes_nothing(server: TritonServer) -> None:
    from_a_page = {"Content-Type": "text/plain", "Origin": "http://evil.example"}
    for method, path in ADMINISTRATIVE_PAGES:
        assert status(server, method, path, **from_a_page) == 403
    with native(server, "grpc") as client:
        key = server.admin_headers()
        (model,) = client.get_model_repository_index(headers=key, as_json=True)["models"]
        assert (model["name"], model["state"]) == ("double", "READY")
        assert not client.get_system_shared_memory_status(headers=key, as_json=True)
        assert client.is_server_ready()


def test_vertex_ai_does_not_open_a_door_without_a_key(server: TritonServer) -> None:
    """In an environment of Vertex AI, Triton Server starts one more HTTP service by itself."""

    def answers(port: int) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    deadline = time.monotonic() + 30
    # The metrics are the last service that the server starts.
    while not answers(server.ports.metrics):
        assert time.monotonic() < deadline, server.last_error()
        time.sleep(0.05)
    assert not answers(int(os.environ["AIP_HTTP_PORT"]))


@pytest.mark.parametrize("path", OPEN_PAGES)
def test_health_and_metadata_are_open(server: TritonServer, path: str) -> None:
    assert status(server, "GET", path) == 200


def doubled(server: TritonServer, protocol: str) -> list[float]:
    """What the model answers to 21, without a key."""
    package = importlib.import_module(f"tritonclient.{protocol}")
    tensor = package.InferInput("X", [1], "FP32")
    tensor.set_data_from_numpy(np.array([21], np.float32))
    with native(server, protocol) as client:
        return list(client.infer("double", [tensor]).as_numpy("Y"))


def test_row_35_no_secret(row: Row, server: TritonServer) -> None:
    denied, permitted = 0, 0
    for protocol in PROTOCOLS:
        with native(server, protocol) as client:
            for call, arguments in HARMLESS_CALLS + OTHER_CALLS:
                with pytest.raises(
                    InferenceServerException,
                    match=r"This (API|protocol) is restricted, expecting header",
                ):
                    getattr(client, call)(*arguments)
                denied += 1
            for call, arguments in HARMLESS_CALLS:
                getattr(client, call)(*arguments, headers=server.admin_headers(protocol))
                permitted += 1
            for call, arguments in OPEN_CALLS:
                assert getattr(client, call)(*arguments)
        assert doubled(server, protocol) == [42]
    row.shows(
        "no secret: every administrative call is denied on HTTP and gRPC, inference works",
        target="all denied",
        measured=f"{denied} calls of stock clients denied, inference, health and metadata open",
        met=denied == 2 * len(HARMLESS_CALLS + OTHER_CALLS),
        permitted_with_the_key=permitted,
    )


def test_the_key_is_in_no_log_and_new_with_each_server(server: TritonServer) -> None:
    (key,) = server.admin_headers("http").values()
    assert len(key) == 64
    assert key not in server.log_path.read_text()
    assert key not in repr(server)
    assert TritonServer(server.repo).admin_headers("http") != server.admin_headers("http")
