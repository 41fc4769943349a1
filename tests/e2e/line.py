"""What the tests of the command line share: tasks, a line of folders, a server, and traffic."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pidep.serving.server import Ports, free_ports
from tests.cli.run import environment, pidep

TASKS = {
    "book": (("bad", "awful"), ("good", "great")),
    "meal": (("bad",), ("great",)),
    "film": (("awful",), ("good",)),
}
TUNE = ("--steps", 6, "--mixture-steps", 3, "--rank", 2, "--batch-size", 8, "--learning-rate", 0.05)
TEXTS = ["the film was very good", "a very awful film", "great", "the bad film was bad"]
STOCK = """
import json, sys
import numpy as np
import tritonclient.grpc as triton
client = triton.InferenceServerClient(sys.argv[1])
inputs = []
for name, value in (("TEXT", "the film was good"), ("EXPERT", "film")):
    tensor = triton.InferInput(name, [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[value.encode()]], dtype=object))
    inputs.append(tensor)
answer = client.infer("pidep_bank", inputs)
names = ("SCORES", "LABELS", "LABEL", "DIGEST")
found = {name: answer.as_numpy(name).ravel().tolist() for name in names}
assert not [name for name in sys.modules if name.split(".")[0] == "pidep"]
text = lambda value: value.decode() if isinstance(value, bytes) else value
print(json.dumps({name: [text(value) for value in values] for name, values in found.items()}))
"""


def write_task(folder: Path, name: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = []
    for index in range(80):
        words = TASKS[name][index % 2]
        filler = " ".join(rng.choice(["a", "film", "the", "was", "very"], size=5))
        rows.append(
            {"text": f"{filler} {rng.choice(words)}", "label": ["negative", "positive"][index % 2]}
        )
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    labels = "{negative: negative, positive: positive}"
    (folder / f"{name}.yaml").write_text(
        f"name: {name}\nlabels: {labels}\ndata: {{path: {name}.jsonl}}\nmax_length: 12\n"
    )


def run(folder: Path, *arguments: object, stdin: str = "") -> str:
    """The command's stdout. A command that succeeds prints nothing on stderr."""
    done = pidep(*arguments, cwd=folder, stdin=stdin)
    assert (done.code, done.err) == (0, "")
    return done.out


@dataclass
class Line:
    """The folders that the commands made, step by step."""

    folder: Path
    tuned: dict[str, Any] = field(default_factory=dict)
    exported: dict[str, Any] = field(default_factory=dict)
    ports: Ports = field(default_factory=free_ports)

    @property
    def grpc(self) -> str:
        return f"127.0.0.1:{self.ports.grpc}"

    @property
    def http(self) -> str:
        return f"127.0.0.1:{self.ports.http}"

    def infer(self, *arguments: object, stdin: str = "") -> list[dict[str, Any]]:
        return [
            json.loads(row)
            for row in run(self.folder, "infer", *arguments, stdin=stdin).splitlines()
        ]


@contextmanager
def serving(folder: Path, ports: Ports) -> Iterator[subprocess.Popen[str]]:
    """`pidep serve repo`, ready. It is killed at the end if no test stopped it."""
    options = [
        str(part)
        for name in ("http", "grpc", "metrics")
        for part in (f"--{name}-port", getattr(ports, name))
    ]
    command = [sys.executable, "-m", "pidep", "serve", "repo", *options]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(
        command, cwd=folder, env={**environment(), "TMPDIR": str(folder / "tmp")}, **pipes
    )
    try:
        assert process.stdout is not None
        ready = process.stdout.readline()
        assert ready.startswith("ready: pidep_bank"), ready + process.communicate(timeout=60)[1]
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=60)


@dataclass
class Traffic:
    """Stock clients that count each request and each answer."""

    url: str
    sent: list[int] = field(default_factory=lambda: [0] * 3)
    digests: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self, worker: int) -> None:
        import tritonclient.grpc as triton

        inputs = []
        for name, value in (("TEXT", TEXTS[worker]), ("EXPERT", "film")):
            inputs.append(triton.InferInput(name, [1, 1], "BYTES"))
            inputs[-1].set_data_from_numpy(np.array([[value.encode()]], dtype=object))
        with triton.InferenceServerClient(self.url) as client:
            while not self.stop.is_set():
                self.sent[worker] += 1
                try:
                    answer = client.infer("pidep_bank", inputs, client_timeout=20)
                    self.digests.append(answer.as_numpy("DIGEST")[0, 0].decode())
                except Exception as error:  # whatever the error is, a request was lost
                    self.failures.append(repr(error))

    @contextmanager
    def flowing(self) -> Iterator[None]:
        threads = [
            threading.Thread(target=self.run, args=(worker,)) for worker in range(len(self.sent))
        ]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self.stop.set()
            for thread in threads:
                thread.join()


def wait_for(condition: Any, *, at_most_s: float = 20.0) -> None:
    deadline = time.monotonic() + at_most_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
