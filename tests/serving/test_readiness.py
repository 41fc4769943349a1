"""The probe's command: ready means that the store's revision is served, not that a port is open."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pidep.artifacts import BankRecord
from pidep.artifacts.manifest import Manifest
from pidep.errors import ServingError, UnreachableError
from pidep.serving import ExpertStore, TritonServer, free_ports
from pidep.serving.readiness import require_alive, require_ready
from pidep.serving.stubs import stubs_of
from pidep.serving.visitor import page
from tests.cli.run import nobody
from tests.serving.experts import small_expert
from tests.serving.served import wait_until
from tests.serving.small_bank import write_served_bank
from tests.serving.test_imports import loaded_after


@pytest.fixture
def server(tmp_path: Path) -> Iterator[TritonServer]:
    with TritonServer(write_served_bank(tmp_path), free_ports()) as started:
        yield started


def probe(entry: Path, url: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pidep.serving.readiness", str(entry), url, *options]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.server
@pytest.mark.slow  # Triton Server takes half a minute to unload a model whose process was killed
def test_it_follows_the_store_the_entry_and_the_process(server: TritonServer) -> None:
    entry, url = server.repo / "pidep_bank", server.http_url
    store = ExpertStore(server.repo.parent / "expert_store")
    done = probe(entry, url)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    new = store.publish(small_expert(seed=9), "film")
    wait_until(lambda: not probe(entry, url).returncode)
    # A revision that no server has seen yet.
    manifest = Manifest.read(store.folder)
    ahead = server.repo.parent / "ahead"
    ahead.mkdir()
    manifest.model_copy(update={"revision": new.revision + 1}).write(ahead)
    record = entry / "1" / "bank.json"
    content = record.read_bytes()
    BankRecord.read(record.parent).model_copy(update={"expert_store": "../../../ahead"}).write(
        record.parent
    )
    with pytest.raises(ServingError, match=rf"revision {new.revision} is served, the store is at"):
        require_ready(entry, url)
    require_alive(entry, url)
    BankRecord.read(record.parent).model_copy(update={"max_positions": 9}).sealed(
        record.parent
    ).write(record.parent)
    with pytest.raises(ServingError, match=r"entry sha256:.* is served, the repository has"):
        require_ready(entry, url)
    record.write_bytes(content)
    (stub,) = stubs_of(server.pid)
    os.kill(stub.pid, signal.SIGKILL)
    wait_until(lambda: probe(entry, url, "--alive").returncode == 1)
    # Triton Server still calls itself ready.
    ready = page("127.0.0.1", server.ports.http, "v2/models/pidep_bank/ready", timeout_s=5)
    assert ready.status == 200
    assert "pidep_bank" in probe(entry, url).stderr


def test_nobody_is_not_ready(tmp_path: Path) -> None:
    entry = write_served_bank(tmp_path) / "pidep_bank"
    with pytest.raises(UnreachableError, match="no answer"):
        require_ready(entry, nobody())
    assert probe(entry, nobody(), "--alive").returncode == 1


def test_a_probe_starts_without_what_it_does_not_need() -> None:
    loaded = loaded_after("import pidep.serving.readiness")
    assert not loaded & {"onnxruntime", "tritonclient", "torch", "typer"}
