"""The real Triton Server as a process: any path, any environment, and how it ends."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pidep.artifacts import BankRecord
from pidep.serving import AsyncClient, Client, Request, TritonServer, free_ports
from pidep.serving.request import Protocol
from tests.serving.served import members, regions, serving, wait_until
from tests.serving.small_bank import write_served_bank

pytestmark = pytest.mark.server
PROTOCOLS: tuple[Protocol, ...] = ("grpc", "http")

SLOW = """
import time
import triton_python_backend_utils as utils

class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for request in requests:
            seconds = utils.get_input_tensor_by_name(request, "X").as_numpy()
            time.sleep(float(seconds[0]))
            responses.append(utils.InferenceResponse([utils.Tensor("Y", 2 * seconds)]))
        return responses
"""


@pytest.fixture(scope="module")
def awkward(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A server in a folder with a space and an accent, behind a proxy that does not answer.

    Its working directory has modules that would take the place of Python's own.
    """
    folder = tmp_path_factory.mktemp("awkward")
    repo = write_served_bank(folder / "mes modèles")
    for name in ("json", "logging", "numpy", "pathlib"):
        (folder / f"{name}.py").write_text("raise SystemExit('this is not the standard library')")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy"):
            patch.setenv(name, "http://127.0.0.1:9")
        patch.setenv("no_proxy", "")
        patch.setenv("NO_PROXY", "")
        server = TritonServer(repo, free_ports())
        with patch.context() as inside:
            inside.chdir(folder)
            server.start()
        yield server
        server.stop()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_clients_answer_behind_a_proxy_and_from_any_path(
    awkward: TritonServer, protocol: Protocol
) -> None:
    url = awkward.grpc_url if protocol == "grpc" else awkward.http_url
    rows = [Request("good film", "film"), Request("bad", "book")]
    with Client(url, protocol=protocol) as client:
        expected = client.infer(rows)

    async def asked() -> Any:
        async with AsyncClient(url, protocol=protocol) as client:
            return await client.infer(rows)

    assert asyncio.run(asked()) == expected
    assert [result.expert for result in expected] == ["film", "book"]


def test_a_load_without_changes_loads_nothing_again(awkward: TritonServer) -> None:
    """The stub keeps no bytecode in the repository, which would look like a change."""
    import tritonclient.grpc

    with tritonclient.grpc.InferenceServerClient(
        awkward.grpc_url, channel_args=[("grpc.enable_http_proxy", 0)]
    ) as client:
        client.load_model("pidep_bank", headers=awkward.admin_headers())
    assert awkward.log_path.read_text().count('"loading: pidep_bank') == 1
    assert not list(awkward.repo.rglob("*.pyc"))


def test_an_entry_is_whole_without_its_mark_against_bytecode(tmp_path: Path) -> None:
    """Tools that copy folders leave out `__pycache__`."""
    version = write_served_bank(tmp_path) / "pidep_bank" / "1"
    record = BankRecord.read(version)
    assert record.sealed(version).entry_digest == record.entry_digest
    (version / "__pycache__").unlink()
    assert record.sealed(version).entry_digest == record.entry_digest


def slow_repository(folder: Path) -> Path:
    """A model that sleeps as long as it is asked to."""
    version = folder / "model_repo" / "slow" / "1"
    version.mkdir(parents=True)
    (version.parent / "config.pbtxt").write_text(
        'name: "slow"\nbackend: "python"\nmax_batch_size: 0\n'
        'input [{ name: "X" data_type: TYPE_FP32 dims: [1] }]\n'
        'output [{ name: "Y" data_type: TYPE_FP32 dims: [1] }]\n'
    )
    (version / "model.py").write_text(SLOW)
    for name in ("merged.json", "model.onnx", "__pycache__"):
        (version / name).write_text("{}")
    return folder / "model_repo"


def ask_slow(connection: http.client.HTTPConnection, seconds: float) -> int:
    body = {"inputs": [{"name": "X", "shape": [1], "datatype": "FP32", "data": [seconds]}]}
    connection.request("POST", "/v2/models/slow/infer", json.dumps(body))
    response = connection.getresponse()
    response.read()
    return response.status


def test_a_stop_answers_every_request_and_waits_for_no_idle_connection(tmp_path: Path) -> None:
    server = TritonServer(slow_repository(tmp_path), free_ports())
    server.start()
    folder = server.log_path.parent
    host, port = server.http_url.split(":")
    connections = [http.client.HTTPConnection(host, int(port), timeout=60) for _ in range(5)]
    idle, steady, *others = connections
    assert ask_slow(idle, 0.0) == 200
    # One request runs and two wait in the queue when the server is stopped.
    codes: list[list[int]] = [[] for _ in others]
    last: list[int] = []

    def once(connection: http.client.HTTPConnection, found: list[int]) -> None:
        found.append(ask_slow(connection, 0.7))

    def on_and_on() -> None:
        """A client that keeps its connection and asks until it is refused."""
        while not last or last[-1] == 200:
            last.append(ask_slow(steady, 0.01))

    threads = [
        threading.Thread(target=once, args=pair) for pair in zip(others, codes, strict=True)
    ] + [threading.Thread(target=on_and_on)]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    assert regions(folder)
    started = time.monotonic()
    server.stop()
    took = time.monotonic() - started
    for thread in threads:
        thread.join()
    for connection in connections:
        connection.close()
    assert codes == [[200]] * 3
    # The steady client's last answer is a refusal, not a cut connection.
    assert last[-1] == 404
    # The server alone would wait for the idle connection: 10 s with its exit timeout, else 30 s.
    assert took < 9
    assert not regions(folder)


@pytest.fixture
def process(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """`pidep serve` that repairs nothing, and the folder in which its server runs."""
    with serving(write_served_bank(tmp_path), "--max-restarts", "0") as found:
        yield found.process, found.folder


@pytest.mark.parametrize("name", ["SIGHUP", "SIGQUIT"])
def test_a_closed_terminal_stops_the_server(process: Any, name: str) -> None:
    started, folder = process
    assert len(members(folder)) == 2
    started.send_signal(signal.Signals[name])
    assert started.wait(timeout=30) == 0
    assert started.stdout.read() == "stopped\n"
    assert not members(folder)
    assert not folder.exists()
    assert not regions(folder)


def test_a_killed_command_leaves_no_server(process: Any, tmp_path: Path) -> None:
    started, folder = process
    assert len(members(folder)) == 2
    os.kill(started.pid, signal.SIGKILL)
    wait_until(lambda: not members(folder))
    assert not regions(folder)
    # The next server removes the folder.
    assert folder.is_dir()
    code = "from pidep.serving.staging import StagingFolder; StagingFolder().remove()"
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "TMPDIR": str(tmp_path)})
    assert not folder.exists()


def test_a_killed_server_leaves_no_stub(process: Any) -> None:
    started, folder = process
    server, _ = sorted(members(folder))
    os.kill(server, signal.SIGKILL)
    assert started.wait(timeout=30) == 1
    assert "Triton Server ended by itself with code -9" in started.stdout.read()
    wait_until(lambda: not members(folder))
    assert not regions(folder)
