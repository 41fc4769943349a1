"""The settings of the commands that ship: `pidep export`, `convert`, `bundle`, `serve` and others.

No torch and no numpy.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from pidep.artifacts.names import BANK
from pidep.serving.addresses import LOOPBACK, Ports
from pidep.serving.limits import Limits
from pidep.serving.log_lines import LogFormat
from pidep.serving.server_versions import FLOOR
from pidep.serving.tracing import TRACE_RATE, Tracing
from pidep.settings import Settings, Shown

__all__ = [
    "BundleSettings",
    "ConvertSettings",
    "DoctorSettings",
    "ExportSettings",
    "InferSettings",
    "RollSettings",
    "ServeSettings",
    "SwapSettings",
    "VerifySettings",
]

GRAPH = Shown("Graph")
FORMAT = Shown("Format")
OUTPUT = Shown("Output")
REPOSITORY = Shown("Repository")
ADDRESSES = Shown("Addresses")
ADMINISTRATION = Shown("Administration")
HEALTH = Shown("Health")
LOG = Shown("Log")
TRACES = Shown("Traces")
MEMORY = Shown("Memory")
LIMITS = Shown("Limits")
REQUEST = Shown("Request")
PROOF = Shown("Proof")
IMAGE = Shown("Image")
CLUSTER = Shown("Cluster")

_IMAGE = r"\A[a-z0-9][A-Za-z0-9._/:@-]*\z"
"""An image's name: no character that YAML or a Dockerfile would read otherwise."""


class ExportSettings(Settings):
    """How experts are compiled and where they are published."""

    form: Annotated[Literal["bank", "merged"], GRAPH] = "bank"
    """bank: one graph for many experts, which can be swapped. merged: one graph with one expert in
    its weights."""
    recipe: Annotated[str, GRAPH] = "onnx-cpu"
    """Recipe name or YAML file; `pidep recipes` lists the names."""
    fallback: Annotated[Literal["fp32"] | None, GRAPH] = None
    """fp32: experts that the recipe is too imprecise for become merged models of recipe onnx-cpu,
    beside the bank. Without it, one such expert fails the export."""
    max_rank: Annotated[int | None, GRAPH] = Field(default=None, ge=1, le=4096)
    """Largest rank a bank can hold. Without it, that of the largest expert."""
    platform: Annotated[Literal["python", "onnxruntime", "tensorrt"], GRAPH] = "python"
    """Triton Server's backend of a merged graph. onnxruntime and tensorrt need NVIDIA's
    container."""
    front: Annotated[bool, GRAPH] = False
    """For `platform` onnxruntime or tensorrt: also write a model of the Python backend that reads
    texts and asks the graph's model."""
    task: Annotated[str | None, GRAPH] = None
    """Task whose test rows the parity gate uses, for an expert that has none itself."""
    backbone: Annotated[str | None, GRAPH] = None
    """Name or folder of the backbone, where it moved after training. Its digest is checked."""
    keep_rows: Annotated[bool, GRAPH] = False
    """Keep up to 64 of the gate's rows of each expert in the entry, for `pidep verify`. Rows may be
    private, and an entry is published."""
    repo: Annotated[Path, REPOSITORY] = Path("model_repo")
    """Model repository to publish into."""
    store: Annotated[Path | None, REPOSITORY] = None
    """Expert store of a bank. Without it, expert_store beside the repository."""
    allow_new_labels: Annotated[bool, REPOSITORY] = False
    """Permit an expert with other labels, or another template, than its name has now."""
    overwrite: Annotated[bool, REPOSITORY] = False
    """Replace a model of the repository that pidep did not write, or a bank of another store."""


class ConvertSettings(Settings):
    """Which program the experts are for."""

    to: Annotated[Literal["peft", "onnx-adapter"], FORMAT]
    """peft: a folder that PeftModel.from_pretrained loads. onnx-adapter: a graph with optional
    inputs, and an .onnx_adapter file for each LoRA."""
    base: Annotated[str | None, FORMAT] = None
    """For peft: the hub id or folder that PEFT loads the backbone by. Without it, the name that the
    expert has for it."""
    backbone: Annotated[str | None, FORMAT] = None
    """For onnx-adapter: name or folder of the backbone, where it moved. Its digest is checked."""
    out: Annotated[Path, OUTPUT]
    """Folder to write."""
    overwrite: Annotated[bool, OUTPUT] = False
    """Replace what is in that folder."""


class BundleSettings(Settings):
    """What the files of a bundle say."""

    out: Annotated[Path, REPOSITORY]
    """Folder to write."""
    overwrite: Annotated[bool, REPOSITORY] = False
    """Replace a bundle that is there. Wheels in it are kept."""
    accelerator: Annotated[Literal["cpu", "gpu"], IMAGE] = "cpu"
    """What runs the graph. An entry with a TensorRT engine always takes a GPU."""
    triton_image: Annotated[str, IMAGE] = Field(
        default=f"nvcr.io/nvidia/tritonserver:{FLOOR.release}-py3", pattern=_IMAGE
    )
    """NVIDIA's image that the own one is built on."""
    image: Annotated[str | None, IMAGE] = Field(default=None, pattern=_IMAGE)
    """Name of the own image. Without it, the name and pidep's version."""
    name: Annotated[str | None, CLUSTER] = Field(
        default=None, pattern=r"\A[a-z0-9]([a-z0-9-]{0,48}[a-z0-9])?\z"
    )
    """Name of everything in the cluster. Without it, the model's."""
    replicas: Annotated[int, CLUSTER] = Field(default=2, ge=1, le=1000)
    """Fewest servers."""
    max_replicas: Annotated[int, CLUSTER] = Field(default=8, ge=1, le=1000)
    """Most servers."""
    queue_ms: Annotated[int, CLUSTER] = Field(default=20, ge=1, le=60000)
    """Mean milliseconds that a request may wait; above, the autoscaler adds servers."""
    cpus: Annotated[int, CLUSTER] = Field(default=2, ge=1, le=512)
    """CPU cores of a server."""
    memory_gib: Annotated[int | None, CLUSTER] = Field(default=None, ge=1, le=4096)
    """GiB of memory of a server. Without it, 2 and three times the entry's files."""
    storage_gib: Annotated[int, CLUSTER] = Field(default=10, ge=1, le=65536)
    """GiB of the volume of the repository, and of that of the store."""
    monitoring_namespace: Annotated[str, CLUSTER] = Field(
        default="monitoring", pattern=r"\A[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\z"
    )
    """Namespace of Prometheus, which alone may ask for metrics."""
    log_format: Annotated[LogFormat, LOG] = "text"
    """json: the lines of pidep are JSON objects. Triton Server's own lines stay text."""
    trace_url: Annotated[str | None, TRACES] = None
    """Address of an OpenTelemetry collector that gets traces of requests by OTLP over HTTP, such as
    http://collector.monitoring:4318/v1/traces. Without it, nothing is traced."""
    trace_rate: Annotated[int, TRACES] = Field(default=TRACE_RATE, ge=1)
    """One request of so many is traced."""

    @property
    def tracing(self) -> Tracing | None:
        """Where traces go."""
        return Tracing.of(self.trace_url, self.trace_rate)


class ServeSettings(Settings):
    """Where Triton Server listens, and what a request may hold."""

    host: Annotated[str, ADDRESSES] = LOOPBACK
    """IPv4 address to listen on, or a name of one."""
    http_port: Annotated[int, ADDRESSES] = Field(default=8000, ge=1, le=65535)
    """HTTP port."""
    grpc_port: Annotated[int, ADDRESSES] = Field(default=8001, ge=1, le=65535)
    """gRPC port."""
    metrics_port: Annotated[int, ADDRESSES] = Field(default=8002, ge=1, le=65535)
    """Port of the metrics."""
    allow_remote: Annotated[bool, ADDRESSES] = False
    """Permit a `host` that other machines can reach. The server has no authentication."""
    admin_key_file: Annotated[Path | None, ADMINISTRATION] = None
    """File that holds the key of administrative calls: 16 letters and digits or more, readable by
    its owner alone. Without it, the environment variable PIDEP_ADMIN_KEY, or a new key a start."""
    max_restarts: Annotated[int, HEALTH] = Field(default=5, ge=0)
    """Starts of the server for the same cause within ten minutes: it ended by itself, or a model's
    process died or hangs. 0 ends the command instead."""
    log_format: Annotated[LogFormat, LOG] = "text"
    """json: each line on standard error is a JSON object, also those of the models' processes and
    of Triton Server."""
    trace_url: Annotated[str | None, TRACES] = None
    """Address of an OpenTelemetry collector that gets traces of requests by OTLP over HTTP, such as
    http://127.0.0.1:4318/v1/traces. Without it, nothing is traced."""
    trace_rate: Annotated[int, TRACES] = Field(default=TRACE_RATE, ge=1)
    """One request of so many is traced."""
    resident_bytes: Annotated[int | None, MEMORY] = Field(default=None, ge=1)
    """Most bytes of experts that a bank holds in memory. The others are loaded when a row names
    them. Without it, all are in memory."""
    max_text_bytes: Annotated[int, LIMITS] = Field(default=Limits.max_text_bytes, ge=1)
    """Most UTF-8 bytes of a text."""
    max_request_text_bytes: Annotated[int, LIMITS] = Field(
        default=Limits.max_request_text_bytes, ge=1
    )
    """Most UTF-8 bytes of all texts of a request."""
    max_image_bytes: Annotated[int, LIMITS] = Field(default=Limits.max_image_bytes, ge=1)
    """Most bytes of an encoded image."""
    max_request_image_bytes: Annotated[int, LIMITS] = Field(
        default=Limits.max_request_image_bytes, ge=1
    )
    """Most bytes of all encoded images of a request."""
    max_image_pixels: Annotated[int, LIMITS] = Field(default=Limits.max_image_pixels, ge=1)
    """Most pixels of an image, width times height."""
    max_request_image_pixels: Annotated[int, LIMITS] = Field(
        default=Limits.max_request_image_pixels, ge=1
    )
    """Most pixels of all different images of a request."""

    @property
    def ports(self) -> Ports:
        """Where the server listens."""
        return Ports(
            self.http_port, self.grpc_port, self.metrics_port, self.host, self.allow_remote
        )

    @property
    def tracing(self) -> Tracing | None:
        """Where traces go."""
        return Tracing.of(self.trace_url, self.trace_rate)

    @property
    def limits(self) -> Limits:
        """What one request may hold."""
        return Limits(**{one.name: getattr(self, one.name) for one in fields(Limits)})


class SwapSettings(Settings):
    """Which server gets the expert."""

    repo: Annotated[Path, REPOSITORY] = Path("model_repo")
    """Model repository that the server serves."""
    allow_new_labels: Annotated[bool, REPOSITORY] = False
    """Permit an expert with other labels, or another template, than the name has now."""
    url: Annotated[str, ADDRESSES] = "127.0.0.1:8001"
    """gRPC address of the server, host:port."""
    timeout: Annotated[float, ADDRESSES] = Field(default=10.0, ge=0.1, le=86400)
    """Seconds to wait for an answer with the new digest."""
    verify: Annotated[bool, PROOF] = False
    """Swap under traffic of the command's own, and fail where a request is lost or answered by
    another version."""
    clients: Annotated[int, PROOF] = Field(default=4, ge=1, le=256)
    """Connections that ask at the same time."""
    seconds: Annotated[float, PROOF] = Field(default=3.0, ge=0.1, le=3600)
    """Seconds of traffic before the swap, and again after it."""


class RollSettings(Settings):
    """Which servers get the entry."""

    repo: Annotated[Path, REPOSITORY] = Path("model_repo")
    """Model repository that the servers serve."""
    url: Annotated[tuple[str, ...], ADDRESSES] = ("127.0.0.1:8001",)
    """gRPC address of a server, host:port. Repeat for each server of the repository."""
    timeout: Annotated[float, ADDRESSES] = Field(default=60.0, ge=0.1, le=86400)
    """Seconds for all servers to show the new entry."""
    admin_key_file: Annotated[Path | None, ADMINISTRATION] = None
    """File that holds the key that the servers were started with, readable by its owner alone.
    Without it, the environment variable PIDEP_ADMIN_KEY."""


class VerifySettings(Settings):
    """Which server is checked."""

    url: Annotated[str, ADDRESSES] = "127.0.0.1:8001"
    """gRPC address of the server, host:port."""
    timeout: Annotated[float, ADDRESSES] = Field(default=30.0, ge=0.1, le=86400)
    """Seconds to wait for the answer to a request."""


class DoctorSettings(Settings):
    """Which running server is checked."""

    url: Annotated[str | None, ADDRESSES] = None
    """Address of a running server, host:port. Without it, this machine is described."""
    protocol: Annotated[Literal["grpc", "http"], ADDRESSES] = "grpc"
    """Protocol of `url`. What is open over the other one is not seen."""
    metrics: Annotated[str | None, ADDRESSES] = None
    """Address of the metrics, host:port. Without it, port 8002 of the same host."""
    timeout: Annotated[float, ADDRESSES] = Field(default=5.0, ge=0.1, le=86400)
    """Seconds to wait for each answer."""
    entry: Annotated[Path | None, REPOSITORY] = None
    """Folder that was published, such as model_repo/pidep_bank. The server must serve it, at the
    revision of its store."""
    model: Annotated[str, REPOSITORY] = BANK
    """Served model, where no `entry` is given."""


class InferSettings(Settings):
    """The server, model and expert that answer."""

    expert: Annotated[str | None, REQUEST] = None
    """Expert that answers. Rows of JSONL may name their own."""
    model: Annotated[str, REQUEST] = BANK
    """Served model: the bank, or the name of a merged model."""
    batch_size: Annotated[int, REQUEST] = Field(default=32, ge=1, le=64)
    """Rows in each request."""
    in_flight: Annotated[int, REQUEST] = Field(default=1, ge=1, le=64)
    """Requests that are sent before the first of them is answered."""
    keep_going: Annotated[bool, REQUEST] = False
    """Answer the other rows where one is wrong. Its `error` says why, and the command fails at the
    end."""
    url: Annotated[str | None, ADDRESSES] = None
    """Address of the server, host:port. Without it, 127.0.0.1:8001 for gRPC and :8000 for HTTP."""
    protocol: Annotated[Literal["grpc", "http"], ADDRESSES] = "grpc"
    """Protocol."""
