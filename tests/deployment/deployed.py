"""A Triton Server as somebody else starts it: with doors open, a cache, and services of clouds."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pidep.serving.addresses import Ports, free_ports
from pidep.serving.packaged_server import (
    find_wheel,
    server_binary,
    server_environment,
    stage_backend,
)
from pidep.serving.visitor import page

__all__ = ["Deployed", "deployed"]


@dataclass(frozen=True)
class Deployed:
    """A running server."""

    ports: Ports
    repo: Path

    def url(self, protocol: str) -> str:
        """host:port."""
        return f"127.0.0.1:{self.ports.grpc if protocol == 'grpc' else self.ports.http}"

    @property
    def metrics(self) -> str:
        """host:port."""
        return f"127.0.0.1:{self.ports.metrics}"

    @property
    def entry(self) -> Path:
        """The bank's folder."""
        return self.repo / "pidep_bank"


@contextmanager
def deployed(
    folder: Path, *options: str, host: str = "127.0.0.1", own_options: bool = True
) -> Iterator[Deployed]:
    """A server without a key; the local cache may be enabled by `--cache-config`.

    Args:
        own_options: whether to add the options that load the model.
    """
    load = ["--model-control-mode=explicit", "--load-model=pidep_bank"] if own_options else []
    wheel, ports, repo = find_wheel(), free_ports(), folder / "model_repo"
    listening = [
        part
        for what, port in ports.named().items()
        for part in (f"--{what.lower()}-address={host}", f"--{what.lower()}-port={port}")
    ]
    command = [
        *(str(server_binary(wheel)), f"--model-repository={repo}"),
        f"--backend-directory={stage_backend(wheel, folder)}",
        f"--cache-directory={wheel / 'tritonserver' / 'caches'}",
        "--exit-timeout-secs=5",
        *load,
        *listening,
        *options,
    ]
    environment = server_environment(wheel)
    with open(folder / "log", "wb") as log:
        started = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=folder
        )
    try:
        deadline = time.monotonic() + 60
        # The server opens the port of the metrics last.
        while not all(
            page("127.0.0.1", port, path, timeout_s=5).status == 200
            for port, path in (
                (ports.http, "v2/models/pidep_bank/ready"),
                (ports.metrics, "metrics"),
            )
        ):
            assert started.poll() is None, (folder / "log").read_text()[-2000:]
            assert time.monotonic() < deadline, (folder / "log").read_text()[-2000:]
            time.sleep(0.05)
        yield Deployed(ports, repo)
    finally:
        started.terminate()
        try:
            started.wait(30)
        except subprocess.TimeoutExpired:
            started.kill()
            started.wait()
        shutil.rmtree(folder / "backends", ignore_errors=True)
