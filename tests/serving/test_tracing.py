"""Traces of requests: Triton Server's own spans arrive at a collector."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from pidep.errors import UsageError
from pidep.serving import Client, Request
from pidep.serving.tracing import Tracing
from tests.cli.run import Done, assert_refused
from tests.serving.served import serving, wait_until
from tests.serving.small_bank import write_served_bank

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.mark.parametrize(
    "url",
    [
        "collector:4318",
        "ftp://collector/v1/traces",
        "http://user:secret@collector:4318/v1/traces",
        "http://collector:4318/v1/traces,rate=1",
        "http://collector:4318/v1 traces",
        "http://collector:4318",
        "http://collector:99999/v1/traces",
        "http://[::1/v1/traces",
        "",
    ],
)
def test_what_is_no_address_of_a_collector_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match=r"`trace_url`: expected the address of a collector"):
        Tracing(url)


def test_without_an_address_nothing_is_traced() -> None:
    assert Tracing.of(None, 1) is None
    assert Tracing("https://collector/v1/traces").port == 443
    assert Tracing("http://collector/v1/traces").port == 80
    assert Tracing.of("http://[::1]:4318/v1/traces", 5) == Tracing("http://[::1]:4318/v1/traces", 5)


@dataclass
class Collector:
    """An HTTP server that takes traces as an OpenTelemetry collector does."""

    url: str = ""
    kinds: list[tuple[str, str]] = field(default_factory=list)
    """Path and content type of each call."""
    spans: list[Span] = field(default_factory=list)


@dataclass(frozen=True)
class Span:
    """What a collector is told of a part of a request."""

    name: str
    trace: str
    parent: str
    attributes: dict[str, str]
    events: list[str]
    service: str


def texts(values: list[dict[str, Any]]) -> dict[str, str]:
    """Attributes, their values as texts."""
    return {one["key"]: str(next(iter(one["value"].values()))) for one in values}


def spans_of(body: bytes) -> Iterator[Span]:
    """Of an `ExportTraceServiceRequest` of OTLP in JSON."""
    for resource in json.loads(body)["resourceSpans"]:
        described = texts(resource["resource"]["attributes"])
        for scope in resource["scopeSpans"]:
            for span in scope["spans"]:
                yield Span(
                    span["name"],
                    span["traceId"],
                    span.get("parentSpanId", ""),
                    texts(span.get("attributes", [])),
                    [event["name"] for event in span.get("events", [])],
                    described["service.name"],
                )


@contextmanager
def collecting() -> Iterator[Collector]:
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            """Take the spans."""
            body = self.rfile.read(int(self.headers["Content-Length"]))
            collector.kinds.append((self.path, self.headers["Content-Type"]))
            collector.spans += spans_of(body)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Log nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    collector.url = f"http://127.0.0.1:{server.server_address[1]}/v1/traces"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield collector
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def ask(port: int, request_id: str, headers: dict[str, str]) -> int:
    inputs = [
        {"name": name, "shape": [1, 1], "datatype": "BYTES", "data": [value]}
        for name, value in {"TEXT": "good", "EXPERT": "film"}.items()
    ]
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    body = json.dumps({"id": request_id, "inputs": inputs})
    connection.request("POST", "/v2/models/pidep_bank/infer", body, headers)
    response = connection.getresponse()
    response.read()
    connection.close()
    return response.status


@pytest.mark.server
def test_spans_arrive_under_the_requests_id_and_the_callers_trace(tmp_path: Path) -> None:
    repo = write_served_bank(tmp_path)
    with ExitStack() as while_served, ExitStack() as while_collected:
        collector = while_collected.enter_context(collecting())
        options = ("--trace-url", collector.url, "--trace-rate", "1")
        served = while_served.enter_context(serving(repo, *options))
        parent = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
        assert ask(served.ports.http, "over-http", parent) == 200
        with Client(served.url) as client:
            client.infer([Request("good", "film")], request_id="over-grpc")

        def traced() -> dict[str, Span]:
            """Request id to the span of the model, where the whole trace has arrived."""
            whole = {one.trace for one in collector.spans if one.name == "InferRequest"}
            known = [
                one for one in collector.spans if one.name == "pidep_bank" and one.trace in whole
            ]
            return {one.attributes.get("triton.request_id", ""): one for one in known}

        wait_until(lambda: {"over-http", "over-grpc"} <= traced().keys())
        while_collected.close()
        # The collector is gone, and clients do not notice.
        assert ask(served.ports.http, "after", {}) == 200
        started = time.monotonic()
        while_served.close()
        assert time.monotonic() - started < 15
    assert set(collector.kinds) == {("/v1/traces", "application/json")}
    assert {one.service for one in collector.spans} == {"pidep"}
    over_http = [one for one in collector.spans if one.trace == TRACE]
    assert {one.name for one in over_http} == {"InferRequest", "pidep_bank", "compute"}
    (root,) = (one for one in over_http if one.name == "InferRequest")
    assert root.parent == PARENT
    assert traced()["over-http"].trace == TRACE
    assert "COMPUTE_START" in next(one.events for one in over_http if one.name == "compute")
    over_grpc = traced()["over-grpc"].trace
    assert over_grpc != TRACE
    assert {one.name for one in collector.spans if one.trace == over_grpc} > {"InferRequest"}


def test_the_command_refuses_what_is_no_address(
    inside: Callable[..., Done], tmp_path: Path
) -> None:
    done = inside("serve", write_served_bank(tmp_path), "--trace-url", "collector:4318")
    assert_refused(done, r"--trace-url: expected the address of a collector .*'collector:4318'")
