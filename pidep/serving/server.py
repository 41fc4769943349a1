"""Triton Server from the `nvidia-pytriton` wheel: found, staged, launched, watched until ready, stopped cleanly."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from pidep.errors import ServingError, UsageError

__all__ = ["Ports", "TritonServer", "free_ports", "models_in"]


@dataclass(frozen=True)
class Ports:
    """Where the server listens."""

    http: int = 8000
    grpc: int = 8001
    metrics: int = 8002
    host: str = "127.0.0.1"


def free_ports() -> Ports:
    """Three ports nobody listens on at this moment."""
    sockets = [socket.socket() for _ in range(3)]
    try:
        for handle in sockets:
            handle.bind(("127.0.0.1", 0))
        http, grpc, metrics = (handle.getsockname()[1] for handle in sockets)
        return Ports(http, grpc, metrics)
    finally:
        for handle in sockets:
            handle.close()


def models_in(repo: Path) -> list[str]:
    """Names of the complete models of a repository.

    Raises:
        UsageError: no repository or no complete model. A version without its files sticks in LOADING, so it is refused here.
    """
    if not repo.is_dir():
        raise UsageError(f"{repo}: no such model repository; make one with pidep export")
    found = []
    for folder in sorted(repo.iterdir()):
        if not (folder / "config.pbtxt").is_file():
            continue
        if not any((folder / "1" / name).is_file() for name in ("bank.json", "merged.json")):
            raise UsageError(f"{folder}: no bank.json or merged.json in version 1; export it again")
        for needed in ("model.onnx", *(("model.py",) if 'backend: "python"' in (folder / "config.pbtxt").read_text() else ())):
            if not (folder / "1" / needed).is_file():
                raise UsageError(f"{folder}: version 1 lacks {needed}; export it again")
        found.append(folder.name)
    if not found:
        raise UsageError(f"{repo}: no model with a config.pbtxt in it; make one with pidep export")
    return found


def _wheel() -> Path:
    spec = importlib.util.find_spec("pytriton")
    folder = Path(spec.origin).parent if spec is not None and spec.origin is not None else None
    if folder is None or not (folder / "tritonserver" / "bin" / "tritonserver").is_file():
        raise ServingError(
            "tritonserver not found: pip install 'pidep[serve]' (Linux x86_64), or serve the repository in NVIDIA's container"
        )
    return folder


def _stage_backend(wheel: Path, staged: Path) -> Path:
    """A backend folder with the stub of the running Python."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = wheel / "tritonserver" / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.is_file():
        raise ServingError(f"the wheel's Triton Server has no stub for Python {version}; use Python 3.10 to 3.13")
    target = staged / "backends" / "python"
    target.mkdir(parents=True)
    for name in ("libtriton_python.so", "triton_python_backend_utils.py"):
        os.symlink(wheel / "tritonserver" / "backends" / "python" / name, target / name)
    shutil.copy2(stub, target / stub.name)
    return staged / "backends"


def _require_free(ports: Ports) -> None:
    for what, port in (("HTTP", ports.http), ("gRPC", ports.grpc), ("metrics", ports.metrics)):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((ports.host, port))
            except OSError as error:
                raise ServingError(
                    f"{what} port {ports.host}:{port} is taken ({error.strerror}); stop what listens there or choose --{what.lower()}-port"
                ) from error


class TritonServer:
    """A running Triton Server; use as a context manager."""

    def __init__(self, repo: Path, ports: Ports | None = None, *, ready_within_s: float = 60.0) -> None:
        self.repo = repo.resolve()
        self.ports = ports or Ports()
        self._ready_within_s = ready_within_s
        self._process: subprocess.Popen[bytes] | None = None
        self._staged: Path | None = None
        self.models: list[str] = []

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
        """Of the server process."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Launch, and return when the server and every model are ready.

        Raises:
            ServingError: wheel missing, port taken, or the server ended or stayed unready; its last error is in the message.
        """
        self.models = models_in(self.repo)
        wheel = _wheel()
        _require_free(self.ports)
        self._staged = Path(tempfile.mkdtemp(prefix="pidep-triton-"))
        try:
            self._launch(wheel, _stage_backend(wheel, self._staged))
            self._wait_ready()
        except BaseException:
            self.stop()
            raise

    def _launch(self, wheel: Path, backends: Path) -> None:
        assert self._staged is not None
        ports = self.ports
        command = [str(wheel / "tritonserver" / "bin" / "tritonserver"), "--model-repository", str(self.repo)]
        command += ["--backend-directory", str(backends), "--model-control-mode", "explicit", "--disable-auto-complete-config"]
        command += [f"--load-model={name}" for name in self.models]
        for what, port in (("http", ports.http), ("grpc", ports.grpc), ("metrics", ports.metrics)):
            command += [f"--{what}-address", ports.host, f"--{what}-port", str(port)]
        environment = {
            **os.environ,
            "LD_LIBRARY_PATH": f"{wheel.parent / 'nvidia_pytriton.libs'}:{os.environ.get('LD_LIBRARY_PATH', '')}".rstrip(":"),
            "PYTHONDONTWRITEBYTECODE": "1",  # a __pycache__ in a version folder looks like a changed model
            # The stub ignores PYTHONPATH: its packages are those of the first python3 on the PATH.
            "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}",
        }
        with open(self.log_path, "wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment)

    @property
    def log_path(self) -> Path:
        """The server's log."""
        assert self._staged is not None
        return self._staged / "triton.log"

    def _wait_ready(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + self._ready_within_s
        pending = ["v2/health/ready", *(f"v2/models/{name}/ready" for name in self.models)]
        while pending:
            if self._process.poll() is not None:
                raise ServingError(f"Triton Server ended with code {self._process.returncode} before it was ready: {self.last_error()}")
            if time.monotonic() > deadline:
                raise ServingError(f"Triton Server was not ready within {self._ready_within_s:.0f} s: {self.last_error()}")
            try:
                urllib.request.urlopen(f"http://{self.http_url}/{pending[0]}", timeout=1).close()
                pending.pop(0)
            except (urllib.error.URLError, OSError):
                time.sleep(0.05)

    def last_error(self) -> str:
        """The last line of the log that looks like an error."""
        lines = self.log_path.read_text(errors="replace").splitlines() if self.log_path.is_file() else []
        errors = [line for line in lines if "Error" in line or line.startswith("E") or "failed" in line]
        return (errors or lines or ["no log"])[-1].strip()[:300]

    def wait(self) -> int:
        """Block until the server ends; its exit code."""
        assert self._process is not None
        return self._process.wait()

    def stop(self) -> None:
        """SIGTERM (requests in flight finish), then SIGKILL as the last resort; idempotent."""
        process, self._process = self._process, None
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=40)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self._staged is not None:
            shutil.rmtree(self._staged, ignore_errors=True)
            self._staged = None

    def __enter__(self) -> TritonServer:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()
