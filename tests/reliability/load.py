"""Traffic of many connections over HTTP and gRPC, with every request accounted for.

Clients are the thinnest that the protocols permit, so that they leave the cores to the server.
"""

from __future__ import annotations

import http.client
import json
import math
import random
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from pidep.serving.server import TritonServer

__all__ = ["TEXT", "GrpcLine", "HttpLine", "Load", "Sent", "metric", "quantile_ms"]

TEXT = "good film"
PATH = "/v2/models/pidep_bank/infer"
_HEADERS = {"Content-Type": "application/json"}
_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Sent:
    """One request and what became of it. Times are those of `time.monotonic`."""

    protocol: str
    name: str
    sent: float
    done: float
    digest: str = ""
    scores: tuple[float, ...] = ()
    error: str = ""
    """Empty where it was answered; else `503`, `UNAVAILABLE` and so on."""

    @property
    def ms(self) -> float:
        """How long the client waited."""
        return 1000 * (self.done - self.sent)


class HttpLine:
    """One HTTP connection, kept open."""

    protocol = "http"

    def __init__(self, url: str, *, timeout_s: float = _TIMEOUT_S) -> None:
        host, port = url.split(":")
        self._connection = http.client.HTTPConnection(host, int(port), timeout=timeout_s)

    def ask(self, name: str, text: str = TEXT) -> Sent:
        """Send one row."""
        rows = {"TEXT": text, "EXPERT": name}
        body = {
            "inputs": [
                {"name": key, "shape": [1, 1], "datatype": "BYTES", "data": [value]}
                for key, value in rows.items()
            ],
            "outputs": [{"name": "DIGEST"}, {"name": "SCORES"}],
        }
        started = time.monotonic()
        try:
            self._connection.request("POST", PATH, json.dumps(body), _HEADERS)
            response = self._connection.getresponse()
            data = response.read()
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            return Sent("http", name, started, time.monotonic(), error=type(error).__name__)
        done = time.monotonic()
        if response.status != 200:
            return Sent("http", name, started, done, error=str(response.status))
        found = {one["name"]: one["data"] for one in json.loads(data)["outputs"]}
        return Sent("http", name, started, done, found["DIGEST"][0], tuple(found["SCORES"]))

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


class GrpcLine:
    """One gRPC connection of its own."""

    protocol = "grpc"

    def __init__(self, url: str, *, timeout_s: float = _TIMEOUT_S) -> None:
        # Without a pool of its own, channels of one process share one connection.
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]
        self._channel = grpc.insecure_channel(url, options=options)
        self._infer = service_pb2_grpc.GRPCInferenceServiceStub(self._channel).ModelInfer
        self._timeout_s = timeout_s

    def ask(self, name: str, text: str = TEXT) -> Sent:
        """Send one row."""
        request = grpc_request(name, text)
        started = time.monotonic()
        try:
            answer = self._infer(request, timeout=self._timeout_s)
        except grpc.RpcError as error:
            code = error.code().name
            return Sent("grpc", name, started, time.monotonic(), error=code)
        done = time.monotonic()
        raw = {
            output.name: data
            for output, data in zip(answer.outputs, answer.raw_output_contents, strict=True)
        }
        scores = struct.unpack(f"<{len(raw['SCORES']) // 4}f", raw["SCORES"])
        return Sent("grpc", name, started, done, raw["DIGEST"][4:].decode(), scores)

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()


def grpc_request(name: str, text: str = TEXT) -> Any:
    """The protobuf message of one row."""
    request = service_pb2.ModelInferRequest(model_name="pidep_bank")
    for key, value in (("TEXT", text.encode()), ("EXPERT", name.encode())):
        tensor = request.inputs.add(name=key, datatype="BYTES", shape=[1, 1])
        tensor.contents.bytes_contents.append(value)
    for key in ("DIGEST", "SCORES"):
        request.outputs.add(name=key)
    return request


@dataclass
class Load:
    """Clients that ask one row after the other until the block ends; half of them over HTTP."""

    http_url: str
    grpc_url: str
    names: Sequence[str] | Callable[[random.Random], str] = ("film",)
    connections: int = 32
    pause_s: float = 0.0
    """Between an answer and the next request of a connection."""
    text: str = TEXT
    timeout_s: float = _TIMEOUT_S
    """Of a request; the error is `TimeoutError` or `DEADLINE_EXCEEDED` then."""
    _found: list[list[Sent]] = field(default_factory=list)
    _started: list[int] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Load:
        for number in range(self.connections):
            self._found.append([])
            self._started.append(0)
            thread = threading.Thread(target=self._ask, args=(number,), name=f"client-{number}")
            self._threads.append(thread)
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    @property
    def all(self) -> list[Sent]:
        """Every request that has an end, in no order."""
        return [one for found in self._found for one in list(found)]

    @property
    def lost(self) -> int:
        """Requests that were sent and have neither an answer nor an error; call it at the end."""
        return sum(self._started) - len(self.all)

    @property
    def errors(self) -> Counter[str]:
        """Number of requests by error."""
        return Counter(one.error for one in self.all if one.error)

    def _ask(self, number: int) -> None:
        limit = self.timeout_s
        line = (
            GrpcLine(self.grpc_url, timeout_s=limit)
            if number % 2
            else HttpLine(self.http_url, timeout_s=limit)
        )
        chance = random.Random(number)
        found = self._found[number]
        try:
            while not self._stop.is_set():
                names = self.names
                name = names(chance) if callable(names) else names[len(found) % len(names)]
                self._started[number] += 1
                found.append(line.ask(name, self.text))
                if self.pause_s:
                    self._stop.wait(self.pause_s)
        finally:
            line.close()


def quantile_ms(sent: Sequence[Sent], share: float) -> float:
    """The waiting time that this share of the requests did not exceed."""
    times = sorted(one.ms for one in sent)
    return times[min(len(times) - 1, math.ceil(share * len(times)) - 1)]


def metric(server: TritonServer, name: str) -> float:
    """Sum of a metric over its labels, when no batch is being counted any more."""
    before = None
    while before != (before := _shown_metric(server, name)):
        time.sleep(0.05)  # a batch is counted after its replies
    return before


def _shown_metric(server: TritonServer, name: str) -> float:
    connection = http.client.HTTPConnection("127.0.0.1", server.ports.metrics)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name))
