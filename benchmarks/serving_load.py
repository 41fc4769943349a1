"""Load on Triton Server from another process, and what the server's processes use for it.

The load comes from `wrk`, which takes some 20 µs of a core for a request. A client in Python takes
as long as a row of the graph, on the same cores.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pidep.artifacts import names
from pidep.errors import UsageError
from pidep.serving import TritonServer
from pidep.serving.stubs import stubs_of

__all__ = [
    "Asked",
    "Load",
    "cpu_s",
    "find_wrk",
    "first_answer",
    "rss_mib",
    "texts",
    "write_requests",
]

_SCRIPT = Path(__file__).with_name("wrk_rows.lua")
_OUTPUTS = (names.SCORES, names.LABELS, names.LABEL, names.DIGEST, names.ENTRY)
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_WORDS = ("battery", "died", "after", "two", "days", "and", "nobody", "at", "the", "shop", "helped")


class Asked(NamedTuple):
    """One request of one row."""

    text: str
    expert: str = ""
    """Empty for a merged model."""
    model: str = names.BANK


def texts(count: int) -> list[str]:
    """Texts of 4 to 40 words, most of them short; the same in every process."""
    rng = np.random.default_rng(0)
    sizes = np.clip(rng.lognormal(2.5, 0.6, count).astype(int), 4, 40)
    return [" ".join(rng.choice(_WORDS, size)) for size in sizes]


def find_wrk() -> str:
    """The program.

    Raises:
        UsageError: it is not installed.
    """
    found = shutil.which("wrk")
    if found is None:
        raise UsageError("wrk: not found, it makes the load; apt-get install -y wrk")
    return found


def write_requests(path: Path, asked: Sequence[Asked]) -> None:
    """The requests as `wrk_rows.lua` reads them: what tritonclient sends over HTTP."""
    from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput

    outputs = [InferRequestedOutput(name, binary_data=True) for name in _OUTPUTS]
    with open(path, "wb") as file:
        for one in asked:
            inputs = []
            for name, value in ((names.TEXT, one.text), (names.EXPERT, one.expert)):
                if value:
                    tensor = InferInput(name, [1, 1], "BYTES")
                    tensor.set_data_from_numpy(np.array([[value.encode()]], dtype=object))
                    inputs.append(tensor)
            body, head = InferenceServerClient.generate_request_body(inputs, outputs=outputs)
            line = f"/v2/models/{one.model}/infer {head} {len(body)}\n"
            file.write(line.encode() + bytes(body))


@dataclass
class Load:
    """A running `wrk`."""

    process: subprocess.Popen[str]
    server: TritonServer
    cpu_at_start: dict[str, float]

    @classmethod
    def start(
        cls,
        server: TritonServer,
        requests: Path,
        *,
        connections: int,
        seconds: float,
        seen: Path | None = None,
    ) -> Load:
        """Ask the server, each connection one request at a time.

        Args:
            seen: gets a line for the first answer of each digest; see `first_answer`.
        """
        command = [
            *(find_wrk(), "--threads", "1", "--connections", str(connections)),
            *("--duration", f"{round(seconds)}s", "--timeout", "10s", "--script", str(_SCRIPT)),
            *(f"http://{server.http_url}", "--", str(requests), *([str(seen)] if seen else [])),
        ]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        return cls(process, server, cpu_s(server))

    def result(self) -> dict[str, Any]:
        """Rates and latencies when it is over, with the CPU time of the server for each row."""
        printed, _ = self.process.communicate()
        used = cpu_s(self.server)
        found: dict[str, Any] = json.loads(printed.splitlines()[-1])
        found["rows_per_s"] = round(found["requests"] / found["seconds"], 2)
        rows = max(found["requests"], 1)
        found["cpu_ms_per_row"] = {
            name: round(1e3 * (used[name] - before) / rows, 4)
            for name, before in self.cpu_at_start.items()
        }
        return found


def first_answer(seen: Path, digest: str, *, within_s: float = 30.0) -> float:
    """When the load had its first answer of a version, in seconds of the monotonic clock."""
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        for line in seen.read_text().splitlines() if seen.is_file() else ():
            found, _, at = line.partition(" ")
            if found == digest and at:
                return float(at)
        time.sleep(0.005)
    raise TimeoutError(f"no client had an answer of {digest} within {within_s:g} s")


def cpu_s(server: TritonServer) -> dict[str, float]:
    """Seconds of CPU time that the server and its stubs have used."""
    fields = Path(f"/proc/{server.pid}/stat").read_text().rpartition(")")[2].split()
    own = (int(fields[11]) + int(fields[12])) / _TICKS_PER_S
    return {"server": own, "stub": sum(stub.cpu_s for stub in stubs_of(server.pid))}


def rss_mib(server: TritonServer) -> dict[str, float]:
    """Resident memory in MiB: of the server, of its stubs together."""

    def of(pid: int) -> float:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))

    stubs = [of(stub.pid) for stub in stubs_of(server.pid)]
    return {"server": of(server.pid), "stub": sum(stubs)}
