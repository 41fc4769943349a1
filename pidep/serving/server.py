"""A Triton Server of this process: launched, watched until it is ready, stopped cleanly."""

from __future__ import annotations

import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from pidep.errors import ServingError
from pidep.serving.packaged_server import (
    find_wheel,
    server_binary,
    server_environment,
    stage_backend,
)
from pidep.serving.repository import models_in
from pidep.serving.request import Protocol

__all__ = ["Ports", "TritonServer", "free_ports", "models_in"]

_ADMINISTRATION = (
    "model-repository",
    "model-config",
    "shared-memory",
    "statistics",
    "trace",
    "logging",
)
"""Triton Server's groups of calls that need the key: all but inference, health and metadata."""
_KEY_NAME = "pidep-admin-key"
_POLL_S = 0.05
_STOP_WITHIN_S = 40
"""Triton Server itself waits up to 30 s for requests in flight."""


@dataclass(frozen=True)
class Ports:
    """Where the server listens."""

    http: int = 8000
    grpc: int = 8001
    metrics: int = 8002
    host: str = "127.0.0.1"

    def named(self) -> dict[str, int]:
        """Ports by what listens there."""
        return {"HTTP": self.http, "gRPC": self.grpc, "metrics": self.metrics}


def free_ports() -> Ports:
    """Three ports that nobody listens on at this moment."""
    sockets = [socket.socket() for _ in range(3)]
    try:
        # All are bound before one is closed, so that they differ.
        for handle in sockets:
            handle.bind(("127.0.0.1", 0))
        http, grpc, metrics = (handle.getsockname()[1] for handle in sockets)
        return Ports(http, grpc, metrics)
    finally:
        for handle in sockets:
            handle.close()


class TritonServer:
    """A running Triton Server; use as a context manager.

    Inference, health and metadata are open to every client. All other calls need `admin_headers`.
    """

    def __init__(
        self, repo: Path, ports: Ports | None = None, *, ready_within_s: float = 60.0
    ) -> None:
        """Nothing is started yet.

        Args:
            repo: the model repository; every model in it is loaded.
            ready_within_s: how long to wait for the models.
        """
        self.repo = repo.resolve()
        self.ports = ports or Ports()
        self.models: list[str] = []
        """Names of the loaded models."""
        self._ready_within_s = ready_within_s
        self._process: subprocess.Popen[bytes] | None = None
        self._staged: Path | None = None
        self._key = secrets.token_hex(32)

    def admin_headers(self, protocol: Protocol = "grpc") -> dict[str, str]:
        """Headers that permit administrative calls, such as model loads and statistics.

        Pass them as `headers=` to tritonclient's methods. The key in them is random and changes
        with each start.
        """
        # Triton Server looks for a gRPC key under this prefix, and for an HTTP key without it.
        prefix = "triton-grpc-protocol-" if protocol == "grpc" else ""
        return {f"{prefix}{_KEY_NAME}": self._key}

    @property
    def grpc_url(self) -> str:
        """host:port."""
        return f"{self.ports.host}:{self.ports.grpc}"

    @property
    def http_url(self) -> str:
        """host:port."""
        return f"{self.ports.host}:{self.ports.http}"

    @property
    def pid(self) -> int:
        """Process id of the server."""
        return self._running().pid

    @property
    def log_path(self) -> Path:
        """The server's log; it is removed when the server stops."""
        assert self._staged is not None, "the server was not started"
        return self._staged / "triton.log"

    def start(self) -> None:
        """Launch, and return when the server and every model are ready.

        Raises:
            UsageError: the repository has no complete model.
            ServingError: the wheel is missing, a port is taken, or the server ended or stayed
                unready; the last error of its log is in the message.
        """
        self.models = models_in(self.repo)
        # A new key for each start: one that leaked is worth nothing after a restart.
        self._key = secrets.token_hex(32)
        wheel = find_wheel()
        _require_free(self.ports)
        self._staged = Path(tempfile.mkdtemp(prefix="pidep-triton-"))
        try:
            self._launch(wheel, stage_backend(wheel, self._staged))
            self._wait_ready()
        # Also on Ctrl-C: nothing else would end a server that is half started.
        except BaseException:
            self.stop()
            raise

    def wait(self) -> int:
        """Block until the server ends; its exit code."""
        return self._running().wait()

    def stop(self) -> None:
        """End the server; requests in flight are answered first. Idempotent."""
        process, self._process = self._process, None
        if process is not None and process.poll() is None:
            # SIGTERM lets requests in flight finish. A server that hangs is killed after that.
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=_STOP_WITHIN_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self._staged is not None:
            shutil.rmtree(self._staged, ignore_errors=True)
            self._staged = None

    def last_error(self) -> str:
        """The last line of the log that looks like an error."""
        lines: list[str] = []
        if self.log_path.is_file():
            lines = self.log_path.read_text(errors="replace").splitlines()
        errors = [
            line for line in lines if "Error" in line or line.startswith("E") or "failed" in line
        ]
        return (errors or lines or ["no log"])[-1].strip()[:300]

    def __enter__(self) -> TritonServer:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _running(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "the server was not started"
        return self._process

    def _launch(self, wheel: Path, backends: Path) -> None:
        command = [
            *(str(server_binary(wheel)), "--model-repository", str(self.repo)),
            *("--backend-directory", str(backends)),
            # Only what is named here is loaded; nothing is reloaded because a file has changed.
            *("--model-control-mode", "explicit"),
            # Every configuration is written in full, so nothing is left to complete.
            "--disable-auto-complete-config",
            *(f"--load-model={name}" for name in self.models),
        ]
        for what, port in self.ports.named().items():
            option = f"--{what.lower()}"
            command += [f"{option}-address", self.ports.host, f"{option}-port", str(port)]
        # Without the key, any client (a web page in a browser, too) could load code of its own.
        restriction = f"{','.join(_ADMINISTRATION)}:{_KEY_NAME}={self._key}"
        command.append(f"--http-restricted-api={restriction}")
        command.append(f"--grpc-restricted-protocol={restriction}")
        # A file, not a pipe: nobody reads while the server runs, and a full pipe would stop it.
        with open(self.log_path, "wb") as log:
            self._process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env=server_environment(wheel),
            )

    def _wait_ready(self) -> None:
        process = self._running()
        deadline = time.monotonic() + self._ready_within_s
        pending = ["v2/health/ready", *(f"v2/models/{name}/ready" for name in self.models)]
        while pending:
            if process.poll() is not None:
                raise ServingError(
                    f"Triton Server ended with code {process.returncode} before it was ready: "
                    f"{self.last_error()}"
                )
            if time.monotonic() > deadline:
                raise ServingError(
                    f"Triton Server was not ready within {self._ready_within_s:.0f} s: "
                    f"{self.last_error()}"
                )
            try:
                # A ready server may still load its models, so each one is asked as well.
                url = f"http://{self.http_url}/{pending[0]}"
                urllib.request.urlopen(url, timeout=1).close()
                pending.pop(0)
            except (urllib.error.URLError, OSError):
                time.sleep(_POLL_S)


def _require_free(ports: Ports) -> None:
    """Triton Server ends with a long log where a port is taken; this is one line.

    Raises:
        ServingError: a port is taken.
    """
    for what, port in ports.named().items():
        with socket.socket() as probe:
            # As the server does: a port that was closed a moment ago is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((ports.host, port))
            except OSError as error:
                raise ServingError(
                    f"{what} port {ports.host}:{port} is taken ({error.strerror}); "
                    f"stop what listens there or choose `{what.lower()}_port`"
                ) from error
