"""What a client without the key sees of a server: versions, health, open doors, metrics."""

from __future__ import annotations

import http.client
import ipaddress
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

from pidep.errors import UnreachableError, UsageError
from pidep.serving.addresses import channel_options
from pidep.serving.request import Protocol, check_address, failure

__all__ = ["DOORS", "Door", "Reply", "State", "Visitor", "is_seen_beyond_loopback", "page"]

State: TypeAlias = Literal["open", "closed", "unknown"]
_NOBODY = "pidep-doctor-asks"
"""Name of no model: a load of it changes nothing, and is refused otherwise where it is open."""
_CLOSED = ("restricted", "not allowed", "not found", "unimplemented", "permission", "unauthentic")
"""Words of a refusal by Triton Server, its mode, or a proxy before it."""
_LISTENS = "0A"
"""Of Linux's table of sockets: the state of one that waits for connections."""


class Door(NamedTuple):
    """A group of Triton Server's administrative calls."""

    name: str
    """As `--http-restricted-api` names it."""
    calls: tuple[tuple[str, tuple[Any, ...]], ...]
    """Methods of both tritonclients that change nothing, with their arguments."""
    danger: str
    """What any client can do where it is open."""
    is_grave: bool = True
    """Whether clients could change something, and not only read."""


DOORS = (
    Door(
        "model-repository",
        (
            ("get_model_repository_index", ()),
            ("load_model", (_NOBODY,)),
            ("unload_model", (_NOBODY,)),
        ),
        "load code of its own, or unload the model",
    ),
    Door(
        "shared-memory",
        (("get_system_shared_memory_status", ()), ("get_cuda_shared_memory_status", ())),
        "read and write the memory of a model",
    ),
    Door("trace", (("get_trace_settings", ()),), "write traces to files of the server"),
    Door("logging", (("get_log_settings", ()),), "write the log to files of the server"),
    Door("statistics", (("get_inference_statistics", ()),), "read what is asked", is_grave=False),
    Door(
        "model-config",
        (("get_model_config", ("MODEL",)),),
        "read the model's configuration",
        is_grave=False,
    ),
)


class Reply(NamedTuple):
    """An answer to a plain HTTP request."""

    status: int
    """0 where nobody answers."""
    body: str


class Visitor:
    """A connection without the key to one model of a server; use as a context manager."""

    def __init__(self, url: str, *, protocol: Protocol, model: str, timeout_s: float) -> None:
        """Nothing is asked yet.

        Args:
            url: host:port.

        Raises:
            UsageError: not an address, no such protocol, or tritonclient is not installed.
        """
        if protocol not in ("grpc", "http"):
            raise UsageError(f"protocol {protocol!r}: expected grpc or http")
        check_address(url)
        self.url, self.protocol, self.model = url, protocol, model
        self.host, _, port = url.rpartition(":")
        self.port = int(port)
        self.timeout_s = timeout_s
        try:
            triton = import_module(f"tritonclient.{protocol}")
        except ImportError as error:
            raise UsageError("tritonclient not found: pip install 'pidep[client]'") from error
        limits = {"connection_timeout": timeout_s, "network_timeout": timeout_s}
        more = channel_options(url) if protocol == "grpc" else limits
        self._client = triton.InferenceServerClient(url, **more)

    def __enter__(self) -> Visitor:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def version(self) -> str:
        """The server's version.

        Raises:
            UnreachableError: nobody answers.
            ServingError: it is no Triton Server.
        """
        found = self._asked("get_server_metadata")
        return str(found["version"] if isinstance(found, dict) else found.version)

    def is_ready(self) -> bool:
        """Whether the server has loaded the model.

        Raises:
            ServingError: as `version`.
        """
        return bool(self._asked("is_model_ready", self.model))

    def config(self) -> Any | None:
        """The model's configuration as protobuf; None where the server keeps it to itself."""
        from google.protobuf import json_format
        from tritonclient.grpc import model_config_pb2

        with suppress(Exception):  # whatever hinders it, nothing is seen
            found = self._call("get_model_config", self.model)
            if self.protocol == "grpc":
                return found.config
            return json_format.ParseDict(
                found, model_config_pb2.ModelConfig(), ignore_unknown_fields=True
            )
        return None

    def state(self, door: Door) -> State:
        """Whether a group of administrative calls answers without a key. Changes nothing."""
        states = set()
        for method, arguments in door.calls:
            given = [self.model if one == "MODEL" else one for one in arguments]
            states.add(self._state_of(method, *given))
        return "open" if "open" in states else "unknown" if "unknown" in states else "closed"

    def _state_of(self, method: str, *arguments: Any) -> State:
        try:
            self._call(method, *arguments)
        except Exception as error:
            reason = failure(self.url, self.model, error, timeout_s=self.timeout_s)
            text = f"{_status(error)} {reason}".lower()
            if any(word in text for word in _CLOSED) and "poll" not in text:
                return "closed"
            # The call itself has failed, so it was let in.
            return "unknown" if isinstance(reason, UnreachableError) else "open"
        return "open"

    def _asked(self, method: str, *arguments: Any) -> Any:
        try:
            return self._call(method, *arguments)
        except Exception as error:  # tritonclient raises what its transport raises
            raise failure(self.url, self.model, error, timeout_s=self.timeout_s) from error

    def _call(self, method: str, *arguments: Any) -> Any:
        call: Callable[..., Any] = getattr(self._client, method)
        if self.protocol == "grpc":
            return call(*arguments, client_timeout=self.timeout_s)
        return call(*arguments)


def page(host: str, port: int, path: str, *, timeout_s: float) -> Reply:
    """GET a path; no proxy is asked."""
    connection = http.client.HTTPConnection(host.strip("[]"), port, timeout=timeout_s)
    try:
        connection.request("GET", f"/{path}")
        response = connection.getresponse()
        return Reply(response.status, response.read().decode("utf-8", "replace"))
    except (OSError, http.client.HTTPException):
        return Reply(0, "")
    finally:
        connection.close()


def is_seen_beyond_loopback(port: int) -> bool | None:
    """Whether this machine listens on a port at an address that other machines reach.

    None where nothing on this machine listens there, or Linux does not show it.
    """
    found = None
    for table in ("tcp", "tcp6"):
        try:
            lines = (Path("/proc/net") / table).read_text().splitlines()[1:]
        except OSError:
            continue
        for fields in map(str.split, lines):
            address, _, number = fields[1].partition(":")
            if fields[3] == _LISTENS and int(number, 16) == port:
                found = bool(found) or not _address(address).is_loopback
    return found


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """An address of Linux's table: words of four bytes, the last byte first.

    >>> _address("0100007F")
    IPv4Address('127.0.0.1')
    """
    words = [bytes.fromhex(text[at : at + 8])[::-1] for at in range(0, len(text), 8)]
    found = ipaddress.ip_address(b"".join(words))
    return getattr(found, "ipv4_mapped", None) or found


def _status(error: Exception) -> str:
    """tritonclient's status of an error, such as `StatusCode.UNIMPLEMENTED` or `403`."""
    status = getattr(error, "status", None)
    text = str(status()) if callable(status) else ""
    return f"{text} restricted" if text in ("401", "403") else text
