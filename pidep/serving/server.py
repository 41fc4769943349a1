"""A Triton Server of this process: launched, watched until it is ready, stopped cleanly."""

from __future__ import annotations

import http.client
import json
import logging
import os
import secrets
import signal
import subprocess
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from urllib.parse import quote

from pidep.artifacts import names
from pidep.errors import ServingError
from pidep.serving import end_with_parent
from pidep.serving.addresses import Ports, free_ports, require_free
from pidep.serving.admin_key import require_key
from pidep.serving.launch_options import admin_headers, launch_options
from pidep.serving.limits import RESIDENT_BYTES, Limits
from pidep.serving.log_lines import LOG_FORMAT_VARIABLE, LogFormat
from pidep.serving.log_tail import LogTail, is_error, message_of
from pidep.serving.packaged_server import (
    find_wheel,
    server_binary,
    server_environment,
    stage_backend,
)
from pidep.serving.repository import has_stub, models_in
from pidep.serving.request import Protocol
from pidep.serving.staging import StagingFolder
from pidep.serving.stubs import stubs_of
from pidep.serving.tracing import Tracing

__all__ = ["Ports", "TritonServer", "free_ports", "models_in"]

_POLL_S = 0.05
_CALL_TIMEOUT_S = 5.0
_DRAIN_WITHIN_S = 30.0
"""How long requests in flight may take when the server is stopped."""
_EXIT_TIMEOUT_S = 10
"""How long a server that lost this process waits for its requests and open connections."""
_CLOSE_WITHIN_S = 2.0
"""How long a server without requests may take to end: an idle HTTP connection keeps it."""
_NO_GPU = ("NVML", "CudaDriverHelper")
"""Words of the errors that every server without a GPU logs. They explain nothing."""
_log = logging.getLogger(__name__)


class TritonServer:
    """A running Triton Server; use as a context manager.

    Inference, health and metadata are open to every client. All other calls need `admin_headers`.
    """

    def __init__(
        self,
        repo: Path,
        ports: Ports | None = None,
        *,
        limits: Limits | None = None,
        resident_bytes: int | None = None,
        admin_key: str | None = None,
        log_format: LogFormat = "text",
        log_to: Callable[[str], None] | None = None,
        tracing: Tracing | None = None,
        ready_within_s: float = 60.0,
    ) -> None:
        """Nothing is started yet.

        Args:
            repo: the model repository; every model in it is loaded.
            limits: what one request may hold.
            resident_bytes: most bytes of experts that a bank holds in memory; no bound when absent.
            admin_key: of administrative calls; a new one for each start when absent.
            log_format: of pidep's own lines in the server's log.
            log_to: gets each line of the server's log as JSON, on a thread of its own.
            tracing: of requests; none when absent.
            ready_within_s: how long to wait for the models.

        Raises:
            UsageError: the key is too short or holds other characters than letters and digits.
        """
        if admin_key is not None:
            require_key(admin_key)
        self.repo = repo.resolve()
        self.ports = ports or Ports()
        self.limits = limits or Limits()
        self.resident_bytes = resident_bytes
        self.models: list[str] = []
        """Names of the loaded models."""
        self.models_in_stubs: list[str] = []
        """Those of them that run in processes of the Python backend."""
        self._ready_within_s = ready_within_s
        self._process: subprocess.Popen[bytes] | None = None
        self._staging: StagingFolder | None = None
        self._ready = False
        self._own_key = admin_key
        self._log_format, self._log_to = log_format, log_to
        self._tail: LogTail | None = None
        self._tracing = tracing
        self._key = admin_key or secrets.token_hex(32)

    def admin_headers(self, protocol: Protocol = "grpc") -> dict[str, str]:
        """Headers that permit administrative calls, such as model loads and statistics.

        Pass them as `headers=` to tritonclient's methods. Without a key of your own, the key in
        them is random and changes with each start.
        """
        return admin_headers(self._key, protocol)

    @property
    def grpc_url(self) -> str:
        """host:port for clients on this machine."""
        return f"{self.ports.local_host}:{self.ports.grpc}"

    @property
    def http_url(self) -> str:
        """host:port for clients on this machine."""
        return f"{self.ports.local_host}:{self.ports.http}"

    @property
    def pid(self) -> int:
        """Process id of the server."""
        return self._running().pid

    @property
    def log_path(self) -> Path:
        """The server's log; it is removed when the server stops."""
        assert self._staging is not None, "the server was not started"
        return self._staging.path / "triton.log"

    def start(self) -> None:
        """Launch, and return when the server, every model and the metrics answer.

        Raises:
            UsageError: the repository has no complete model, or the host or the ports are wrong.
            ServingError: the wheel is missing, a port is taken, or the server ended or stayed
                unready; the last error of its log is in the message.
        """
        self.models = models_in(self.repo)
        self.models_in_stubs = [name for name in self.models if has_stub(self.repo / name)]
        self.ports = self.ports.resolved()
        # A new key for each start: one that leaked is worth nothing after a restart.
        self._key = self._own_key or secrets.token_hex(32)
        wheel = find_wheel()
        # Checked last: the window in which another process can take a port stays short.
        require_free(self.ports)
        if self.ports.warning:
            _log.warning(self.ports.warning)
        self._staging = StagingFolder()
        try:
            self._launch(wheel, self._staging)
            self._wait_ready()
        # Also on Ctrl-C: nothing else would end a server that is half started.
        except BaseException:
            self.stop()
            raise

    def wait(self) -> int:
        """Block until the server ends; its exit code."""
        return self._running().wait()

    def ended(self) -> str | None:
        """Why the server ended by itself; None while it runs."""
        code = self._running().poll()
        if code is None:
            return None
        return f"Triton Server ended by itself with code {code}: {self.last_error()}"

    def ask(self, model: str, *, timeout_s: float) -> bool:
        """Whether a model answers a row, be it with an error."""
        # A bank answers its state, without a run of its graph.
        rows = {names.TEXT: "?"}
        if (self.repo / model / names.VERSION / names.BANK_RECORD).is_file():
            rows[names.EXPERT] = names.STATUS
        inputs = [
            {"name": name, "shape": [1, 1], "datatype": "BYTES", "data": [value]}
            for name, value in rows.items()
        ]
        path = f"v2/models/{quote(model)}/infer"
        code, _ = self._call(
            "POST", path, json.dumps({"id": names.PROBE_ID, "inputs": inputs}), timeout_s=timeout_s
        )
        return code != 0

    def stop(self, *, at_once: bool = False) -> None:
        """End the server; requests in flight are answered first. Idempotent.

        Args:
            at_once: wait for no request. Their clients see that the connection is closed.
        """
        process, self._process = self._process, None
        if process is not None and process.poll() is None and not at_once:
            drained = self._ready and self._drain(process)
            process.send_signal(signal.SIGTERM)
            try:
                # A drained server holds no request, so nothing is lost when it is killed.
                process.wait(_CLOSE_WITHIN_S if drained else 2 * _EXIT_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if process is not None:
            # The rest of its group: stubs outlive a server that was killed, and one that hangs.
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self._ready = False
        if self._tail is not None:
            self._tail.stop()
            self._tail = None
        if self._staging is not None:
            self._staging.remove()
            self._staging = None

    def last_error(self) -> str:
        """The last line of the log that looks like an error."""
        lines: list[str] = []
        if self.log_path.is_file():
            lines = self.log_path.read_text(errors="replace").splitlines()
        lines = [line for line in lines if not any(word in line for word in _NO_GPU)]
        errors = list(filter(is_error, lines))
        return message_of((errors or lines or ["no log"])[-1])[:300]

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

    def _launch(self, wheel: Path, staging: StagingFolder) -> None:
        command = [
            *(str(server_binary(wheel)), "--model-repository", str(staging.plain(self.repo))),
            *("--backend-directory", str(stage_backend(wheel, staging.path))),
            *launch_options(self.models, key=self._key),
            f"--exit-timeout-secs={_EXIT_TIMEOUT_S}",
            *(self._tracing.options("pidep") if self._tracing else []),
            # Without it, its lines have no year and no time zone.
            *(["--log-format=ISO8601"] if self._log_format == "json" else []),
            # A prefix of its own, so that what a killed server leaves in shared memory can be
            # found.
            f"--backend-config=python,shm-region-prefix-name={staging.path.name}-",
        ]
        for what, port in self.ports.named().items():
            option = f"--{what.lower()}"
            command += [f"{option}-address", self.ports.host, f"{option}-port", str(port)]
        # A file, not a pipe: nobody reads while the server runs, and a full pipe would stop it.
        with open(self.log_path, "wb") as log:
            self._process = end_with_parent.start(
                command,
                log=log,
                env={**server_environment(wheel), **self._settings()},
                # The stub imports from its working directory first, so the user's must not be it.
                cwd=staging.path,
            )
        if self._log_to is not None:
            self._tail = LogTail(self.log_path, self._log_to)

    def _settings(self) -> dict[str, str]:
        """Variables that the server's models read."""
        found = {**self.limits.to_environment(), LOG_FORMAT_VARIABLE: self._log_format}
        if self.resident_bytes is not None:
            found[RESIDENT_BYTES] = str(self.resident_bytes)
        return found

    def _wait_ready(self) -> None:
        process = self._running()
        deadline = time.monotonic() + self._ready_within_s
        # A ready server may still load its models, so each one is asked as well. The metrics are
        # asked last: the server opens their port after the two of clients.
        pending = [(self.ports.http, "v2/health/ready")]
        pending += [(self.ports.http, f"v2/models/{quote(name)}/ready") for name in self.models]
        pending.append((self.ports.metrics, "metrics"))
        while pending:
            # An ended server is reported at once, not after the whole time limit.
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
            port, path = pending[0]
            if self._call("GET", path, port=port)[0] == 200:
                pending.pop(0)
            else:
                time.sleep(_POLL_S)
        self._ready = True

    def _drain(self, process: subprocess.Popen[bytes]) -> bool:
        """Unload every model: requests in flight and in queues are answered, new ones refused.

        A signal alone would cut the requests of connections that stay open. The requests of a stub
        that is gone are never answered, so nobody waits for them.
        """
        deadline = time.monotonic() + _DRAIN_WITHIN_S
        # Also those that were rolled in since the start.
        loaded = self._loaded() or set(self.models)
        in_stubs = {
            name for name in loaded if (self.repo / name / names.VERSION / names.SHIM).is_file()
        }
        # First those in stubs: a front asks other models until its last request is answered.
        parts = (in_stubs, loaded - in_stubs)
        return all(self._unload(part, process, deadline) for part in parts)

    def _unload(
        self, models: Collection[str], process: subprocess.Popen[bytes], deadline: float
    ) -> bool:
        """Whether these models have answered everything in time."""
        for name in models:
            self._call("POST", f"v2/repository/models/{quote(name)}/unload")
        while process.poll() is None and time.monotonic() < deadline:
            loaded = self._loaded()
            if loaded is not None and loaded & {*models} <= self._without_stub(process.pid):
                return True
            time.sleep(_POLL_S)
        return False

    def _loaded(self) -> set[str] | None:
        """The models that may still answer; None where the server does not say."""
        code, body = self._call("POST", "v2/repository/index")
        if code != 200:
            return None
        # A model that was never loaded has no state.
        gone = ("UNAVAILABLE", None)
        return {one["name"] for one in json.loads(body) if one.get("state") not in gone}

    def _without_stub(self, pid: int) -> set[str]:
        """The models of the Python backend that have no stub which can answer."""
        stubs = stubs_of(pid)
        living = {stub.model for stub in stubs if stub.lives}
        return {*self.models_in_stubs, *(stub.model for stub in stubs)} - living

    def _call(
        self,
        method: str,
        path: str,
        body: str = "",
        *,
        timeout_s: float = _CALL_TIMEOUT_S,
        port: int | None = None,
    ) -> tuple[int, bytes]:
        """Status and body of an HTTP call with the key; status 0 where nobody answers."""
        # http.client uses no proxy, and a call to this machine needs none.
        connection = http.client.HTTPConnection(
            self.ports.local_host, port or self.ports.http, timeout=timeout_s
        )
        try:
            connection.request(method, f"/{path}", body or None, headers=self.admin_headers("http"))
            response = connection.getresponse()
            return response.status, response.read()
        except (OSError, http.client.HTTPException):
            return 0, b""
        finally:
            connection.close()
