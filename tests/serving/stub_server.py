"""Triton Server's protocol over gRPC and HTTP in this process. The answers repeat the request.

It tests clients' requests and errors, for which the real server is slow to start or hard to break.
`tests/e2e` runs the same clients with the real server.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import deserialize_bytes_tensor, serialize_byte_tensor

from pidep.serving.request import Protocol

EMBEDDINGS = {b"a cat": [1.0, 0.0], b"cat": [0.8, 0.6], b"dog": [0.0, 1.0]}


@dataclass
class Asked:
    """One request as it came in."""

    model: str
    outputs: list[str]
    tensors: dict[str, list[bytes]]
    row_errors: bool = False
    request_id: str = field(default="", compare=False)


class Refused(Exception):
    """Refuses the request with this message."""


class Shed(Refused):
    """Refuses the request because the queue is full, as Triton Server words it."""


@dataclass
class Stub:
    """The requests so far, and the server's faults."""

    protocol: Protocol
    answering: Callable[[Asked], dict[str, np.ndarray]] | None = None
    url: str = ""
    asked: list[Asked] = field(default_factory=list)
    error: str = ""
    is_old: bool = False
    """Whether the model was exported before there was an output ENTRY."""
    bad_text: bytes = b""
    """A request with this text is refused."""
    sheds: int = 0
    """How many of the next requests find a full queue."""
    delay_s: float = 0.0
    released: threading.Event = field(default_factory=threading.Event)

    def answer(self, asked: Asked) -> dict[str, np.ndarray]:
        """A row's label is its text, its digest names the expert, and scores fall by 0.1 from row
        to row.
        """
        self.asked.append(asked)
        if self.delay_s:
            self.released.wait(self.delay_s)
        if self.sheds:
            self.sheds -= 1
            raise Shed("Exceeds maximum queue size")
        if self.bad_text and self.bad_text in asked.tensors["TEXT"]:
            raise Refused(f"no {self.bad_text.decode()}")
        if self.error:
            raise Refused(self.error)
        if self.is_old and "ENTRY" in asked.outputs:
            raise Refused(f"unexpected inference output 'ENTRY' for model '{asked.model}'")
        if self.answering is not None:
            return self.answering(asked)
        texts = asked.tensors["TEXT"]
        experts = asked.tensors.get("EXPERT", [b"merged"] * len(texts))
        pairs = list(enumerate(texts))
        scores = [[1.0 - at / 10, at / 10] for at, _ in pairs]
        embeddings = [EMBEDDINGS.get(text, [0.0, 0.0]) for text in texts]
        return {
            "SCORES": np.array(scores, np.float32),
            "LABELS": np.array([[text, b"other" if at else b""] for at, text in pairs], object),
            "LABEL": np.array([[text] for text in texts], object),
            "DIGEST": np.array([[b"sha256:" + name] for name in experts], object),
            "ENTRY": np.array([[b"sha256:entry"] for _ in texts], object),
            "EMBEDDING": np.array(embeddings, np.float32),
            "ERROR": np.array([[b"wrong" if text == b"bad" else b""] for text in texts], object),
        }


def _encoded(array: np.ndarray) -> bytes:
    return serialize_byte_tensor(array).item() if array.dtype == object else array.tobytes()


class _Grpc(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    def __init__(self, stub: Stub) -> None:
        self.stub = stub

    def ModelInfer(self, request: Any, context: Any) -> Any:
        """Decode, answer, encode."""
        tensors = {
            tensor.name: list(deserialize_bytes_tensor(raw))
            for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True)
        }
        assert all(list(one.shape) == [len(tensors["TEXT"]), 1] for one in request.inputs)
        wanted = [output.name for output in request.outputs]
        try:
            alone = request.parameters["row_errors"].bool_param
            asked = Asked(request.model_name, wanted, tensors, alone, request.id)
            found = self.stub.answer(asked)
        except Refused as error:
            code = grpc.StatusCode
            context.abort(
                code.UNAVAILABLE if isinstance(error, Shed) else code.INVALID_ARGUMENT, str(error)
            )
        response = service_pb2.ModelInferResponse(model_name=request.model_name)
        for name in wanted:
            array = found[name]
            kind = "BYTES" if array.dtype == object else "FP32"
            response.outputs.add(name=name, datatype=kind, shape=array.shape)
            response.raw_output_contents.append(_encoded(array))
        return response


def _http_answer(found: dict[str, np.ndarray], wanted: list[str]) -> tuple[bytes, bytes]:
    """A JSON head and the tensors' bytes, because tritonclient asks for binary outputs."""
    raw = [_encoded(found[name]) for name in wanted]
    outputs = [
        {
            "name": name,
            "datatype": "BYTES" if found[name].dtype == object else "FP32",
            "shape": list(found[name].shape),
            "parameters": {"binary_data_size": len(data)},
        }
        for name, data in zip(wanted, raw, strict=True)
    ]
    return json.dumps({"outputs": outputs}).encode(), b"".join(raw)


def _http_handler(stub: Stub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            """Decode the JSON head and the binary tail, answer, encode as JSON."""
            body = self.rfile.read(int(self.headers["Content-Length"]))
            head = int(self.headers.get("Inference-Header-Content-Length", len(body)))
            request, tail = json.loads(body[:head]), body[head:]
            tensors = {}
            for tensor in request["inputs"]:
                size = tensor["parameters"]["binary_data_size"]
                data, tail = tail[:size], tail[size:]
                tensors[tensor["name"]] = list(deserialize_bytes_tensor(data))
            model = self.path.split("/")[3]
            wanted = [output["name"] for output in request["outputs"]]
            code = 200
            try:
                alone = request.get("parameters", {}).get("row_errors", False)
                found = stub.answer(Asked(model, wanted, tensors, alone, request.get("id", "")))
                head_out, tail_out = _http_answer(found, wanted)
            except Refused as error:
                head_out, tail_out = json.dumps({"error": str(error)}).encode(), b""
                code = 503 if isinstance(error, Shed) else 400
            self.send_response(code)
            self.send_header("Inference-Header-Content-Length", str(len(head_out)))
            self.send_header("Content-Length", str(len(head_out + tail_out)))
            self.end_headers()
            with suppress(OSError):  # the client may have given up
                self.wfile.write(head_out + tail_out)

        def log_message(self, *_: Any) -> None:
            """Log nothing."""

    return Handler


@contextmanager
def stub_server(
    protocol: Protocol, answering: Callable[[Asked], dict[str, np.ndarray]] | None = None
) -> Iterator[Stub]:
    """A server on a free port. `answering` replaces its own answers."""
    stub = Stub(protocol, answering)
    if protocol == "grpc":
        server = grpc.server(ThreadPoolExecutor(4))
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(_Grpc(stub), server)
        stub.url = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        server.start()
        try:
            yield stub
        finally:
            stub.released.set()
            server.stop(None).wait()
        return
    http = ThreadingHTTPServer(("127.0.0.1", 0), _http_handler(stub))
    stub.url = f"127.0.0.1:{http.server_address[1]}"
    thread = threading.Thread(target=http.serve_forever)
    thread.start()
    try:
        yield stub
    finally:
        stub.released.set()
        http.shutdown()
        thread.join()
        http.server_close()
