"""Ids of requests: from a client through the server into its log."""

from __future__ import annotations

import asyncio
import http.client
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pidep.artifacts.names import PROBE_ID
from pidep.errors import AnswerError, ExpertError, ServingError, UsageError
from pidep.serving import AsyncClient, Client, ExpertStore, Request, free_ports
from pidep.serving.request import Protocol, Result
from pidep.serving.request_log import log_refused, request_id_of
from tests.cli.run import environment
from tests.serving.experts import small_expert
from tests.serving.served import wait_until
from tests.serving.small_bank import write_served_bank
from tests.serving.stub_server import Stub, stub_server

PROTOCOLS: tuple[Protocol, ...] = ("grpc", "http")
ROWS = [Request("a cat", "first"), Request("bad", "second")]


@pytest.fixture(params=PROTOCOLS)
def stub(request: pytest.FixtureRequest) -> Iterator[Stub]:
    with stub_server(request.param) as found:
        yield found


def asked(stub: Stub, kind: str, **options: Any) -> list[Result]:
    if kind == "blocking":
        with Client(stub.url, protocol=stub.protocol) as client:
            found = client.infer(ROWS, **options)
            return [*found, client.choose(ROWS[0], ROWS, batch_size=2, **options)]

    async def run() -> list[Result]:
        async with AsyncClient(stub.url, protocol=stub.protocol) as client:
            found = await client.infer(ROWS, **options)
            return [*found, await client.choose(ROWS[0], ROWS, batch_size=2, **options)]

    return asyncio.run(run())


@pytest.mark.parametrize("kind", ["blocking", "asyncio"])
def test_a_request_has_the_id_that_is_given_or_a_new_one(stub: Stub, kind: str) -> None:
    found = asked(stub, kind, request_id="mine 1")
    assert [one.request_id for one in found] == ["mine 1"] * 3
    # A batch of rows, and the two batches of a choice.
    assert [one.request_id for one in stub.asked] == ["mine 1"] * 3
    del stub.asked[:]
    first, second, choice = (one.request_id for one in asked(stub, kind))
    assert first == second != choice
    assert [one.request_id for one in stub.asked] == [first, choice, choice]


@pytest.mark.parametrize("kind", ["blocking", "asyncio"])
def test_an_error_names_the_id_also_after_retries(stub: Stub, kind: str) -> None:
    stub.sheds = 1
    stub.error = "no such expert"
    with pytest.raises(ServingError, match=r"no such expert \(request mine\)$"):
        asked(stub, kind, request_id="mine")
    assert [one.request_id for one in stub.asked] == ["mine", "mine"]


def test_where_nobody_listens_no_id_is_named() -> None:
    url = f"127.0.0.1:{free_ports().grpc}"
    with Client(url, retries=0) as client, pytest.raises(ServingError) as found:
        client.infer(ROWS)
    assert "(request" not in str(found.value)


class Named:
    """A request of Triton Server with an id, or an error in its place."""

    def __init__(self, found: str | Exception) -> None:
        self._found = found

    def request_id(self) -> str:
        """As in Triton Server."""
        if isinstance(self._found, Exception):
            raise self._found
        return self._found


def test_an_id_is_short_and_without_control_characters() -> None:
    assert request_id_of(Named("ab-1 é")) == "ab-1 é"
    assert request_id_of(Named("a\r\nINFO forged\x1b[2J")) == "a\ufffd\ufffdINFO forged\ufffd[2J"
    assert request_id_of(Named("x" * 1000)) == "x" * 128
    assert request_id_of(Named(UnicodeDecodeError("utf-8", b"\xff", 0, 1, "no"))) == ""


def test_a_refusal_is_a_line_with_its_code(caplog: pytest.LogCaptureFixture) -> None:
    log_refused("7", [ExpertError("unknown\nexpert"), UsageError("second")], rows=5)
    log_refused("", [AnswerError("x" * 10_000)])
    first, second = caplog.records
    assert first.getMessage() == "request 7: 2 of 5 rows, NOT_FOUND: unknown expert"
    assert (first.levelno, vars(first)["code"]) == (logging.WARNING, "NOT_FOUND")
    assert second.getMessage() == f"a request without an id: INTERNAL: {'x' * 500}"
    assert second.levelno == logging.ERROR


def test_the_refusal_of_a_probe_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    log_refused(PROBE_ID, [UsageError("no words")])
    assert not caplog.records
    log_refused(PROBE_ID, [AnswerError("the graph failed")])
    assert len(caplog.records) == 1


@contextmanager
def serving_json(folder: Path, *options: str) -> Iterator[tuple[Any, Path, Any]]:
    """`pidep serve --log-format json`; its standard error goes to a file."""
    repo, ports, log = write_served_bank(folder), free_ports(), folder / "stderr"
    named = [f"--{what.lower()}-port={port}" for what, port in ports.named().items()]
    command = [sys.executable, "-m", "pidep", "serve", repo, *named, "--log-format", "json"]
    with open(log, "wb") as stderr:
        process = subprocess.Popen(
            [*map(str, command), *options],
            stderr=stderr,
            stdout=subprocess.PIPE,
            env={**environment(), "TMPDIR": str(folder)},
        )
    try:
        wait_until(lambda: process.poll() is not None or '"ready: ' in log.read_text())
        yield process, log, ports
    finally:
        process.terminate()
        process.communicate()


def lines_of(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()]


def post(port: int, body: dict[str, Any]) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("POST", "/v2/models/pidep_bank/infer", json.dumps(body))
    response = connection.getresponse()
    found = response.status, json.loads(response.read())
    connection.close()
    return found


@pytest.mark.server
def test_a_clients_error_is_found_in_the_servers_log(tmp_path: Path) -> None:
    with serving_json(tmp_path) as (process, log, ports):
        with Client(f"127.0.0.1:{ports.grpc}") as client:
            with pytest.raises(ServingError, match=r"unknown expert 'nope'.*\(request (\w+)\)$"):
                client.infer([Request("good", "nope")], request_id="grpc7")
            # One wrong row of two, and rows that are all answered.
            rows = [Request("good", "nope"), Request("good", "film")]
            wrong, right = client.infer(rows, all_or_nothing=False, request_id="rows8")
            assert wrong.error
            assert right.digest
            assert right.request_id == "rows8"
            client.infer([Request("good", "film")], request_id="fine")
        texts = [
            {"name": "TEXT", "shape": [1, 1], "datatype": "BYTES", "data": ["good"]},
            {"name": "EXPERT", "shape": [1, 1], "datatype": "BYTES", "data": ["a\nforged"]},
        ]
        code, answer = post(ports.http, {"id": "http\n9", "inputs": texts})
        assert (code, "unknown expert" in answer["error"]) == (404, True)
        # A flood leaves a bounded number of lines.
        for number in range(150):
            post(ports.http, {"id": f"flood{number}", "inputs": texts})
        ExpertStore(tmp_path / "expert_store").publish(small_expert(name="new", seed=9), "new")
        wait_until(lambda: any(one.get("revision") == 3 for one in lines_of(log)))
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(timeout=60) == 0
        assert process.stdout.read() == b""
    lines = lines_of(log)
    assert all({"time", "level", "logger", "message"} <= one.keys() for one in lines)
    by_id = {one["request_id"]: one for one in lines if "request_id" in one}
    assert "fine" not in by_id
    assert PROBE_ID not in by_id
    one = by_id["grpc7"]
    assert (one["level"], one["code"], one["model"]) == ("warning", "NOT_FOUND", "pidep_bank")
    assert one["message"].startswith("request grpc7: NOT_FOUND: unknown expert 'nope'")
    assert by_id["rows8"]["rows"] == 1
    assert "1 of 2 rows" in by_id["rows8"]["message"]
    assert by_id["http\ufffd9"]["code"] == "NOT_FOUND"
    assert 10 < sum(name.startswith("flood") for name in by_id) < 100
    said = [one["message"] for one in lines]
    assert any(message.startswith("ready: pidep_bank  gRPC ") for message in said)
    # Triton Server's own lines, and the last word.
    assert any(one["logger"] == "triton" and "server.cc" in one["message"] for one in lines)
    assert said[-1] == "stopped"


@pytest.mark.server
def test_what_the_supervisor_says_and_why_the_command_fails_are_json(tmp_path: Path) -> None:
    with serving_json(tmp_path, "--max-restarts", "0") as (process, log, _):
        (server,) = (
            int(path.name)
            for path in Path("/proc").glob("[0-9]*")
            if path.joinpath("stat").exists()
            and f" {process.pid} " in path.joinpath("stat").read_text()[:80]
            and b"tritonserver" in path.joinpath("cmdline").read_bytes()
        )
        os.kill(server, signal.SIGKILL)
        assert process.wait(timeout=30) == 1
    last = lines_of(log)[-1]
    assert last["level"] == "error"
    assert last["message"].startswith("Triton Server ended by itself with code -9")


def test_a_wrong_setting_is_json_too_and_names_the_flag(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pidep", "serve", "--log-format", "json", "--host", "0.0.0.0"]
    repo = write_served_bank(tmp_path)
    done = subprocess.run([*command, str(repo)], capture_output=True, env=environment())
    (line,) = done.stderr.splitlines()
    assert "--host: 0.0.0.0 lets other machines" in json.loads(line)["message"]
    assert done.returncode == 2
