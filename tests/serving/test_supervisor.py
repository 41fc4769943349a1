"""`pidep serve` repairs: dead, stopped and hanging stubs, and a dead server."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from pidep.artifacts import BankRecord
from pidep.errors import ServingError
from pidep.serving import Client, Request
from pidep.serving.stubs import stubs_of
from tests.serving.served import Served, members, regions, serving, wait_until
from tests.serving.small_bank import write_served_bank

pytestmark = pytest.mark.server

HANGS = """
import time
from pidep.runtime.bank import Bank
from pidep.serving.triton_model import TritonPythonModel

run = Bank.run

def hanging(self, residents, rows, names):
    if any("hang" in row.text for row in rows):
        time.sleep(1000)
    return run(self, residents, rows, names)

Bank.run = hanging
"""


def stub_of(served: Served) -> int:
    server = min(members(served.folder))
    (stub,) = stubs_of(server)
    assert stub.model == "pidep_bank"
    return stub.pid


def answers(served: Served, *, timeout_s: float = 2.0) -> bool:
    try:
        with Client(served.url, timeout_s=timeout_s) as client:
            return bool(client.status()["ready"])
    except ServingError:
        return False


@pytest.mark.parametrize("sign", ["SIGKILL", "SIGSTOP"])
def test_a_stub_that_is_gone_is_replaced(tmp_path: Path, sign: str) -> None:
    with serving(write_served_bank(tmp_path)) as served:
        assert answers(served)
        first, started = stub_of(served), time.monotonic()
        os.kill(first, signal.Signals[sign])
        assert not answers(served)
        wait_until(lambda: answers(served), within_s=30)
        assert time.monotonic() - started < 30
        assert stub_of(served) != first
        # For a while nothing fails: what was unloaded does not come back.
        for _ in range(20):
            assert answers(served)
    log = served.process.returncode
    assert log == 0


def test_a_stub_that_hangs_is_replaced(tmp_path: Path) -> None:
    repo = write_served_bank(tmp_path)
    version = repo / "pidep_bank" / "1"
    record = BankRecord.read(version)
    (version / "model.py").write_text(HANGS)
    record.sealed(version).write(version)
    with serving(repo) as served:
        first, found = stub_of(served), []

        def hang() -> None:
            with Client(served.url, timeout_s=60) as client, pytest.raises(ServingError) as error:
                client.infer([Request("hang", "film")])
            found.append(str(error.value))

        asking = threading.Thread(target=hang)
        asking.start()
        wait_until(lambda: served_by_another(served, first), within_s=30)
        wait_until(lambda: answers(served), within_s=30)
        asking.join()
        assert found  # the request that hung has an answer, too: an error


def served_by_another(served: Served, stub: int) -> bool:
    running = stubs_of(min(members(served.folder)))
    return bool(running) and all(one.pid != stub for one in running)


def test_a_dead_server_is_started_again(tmp_path: Path) -> None:
    with serving(write_served_bank(tmp_path)) as served:
        os.kill(min(members(served.folder)), signal.SIGKILL)
        wait_until(lambda: answers(served), within_s=30)
        # The first server's processes, folder and shared memory are gone.
        assert not members(served.folder)
        assert not served.folder.exists()
        assert not regions(served.folder)


def test_a_model_that_dies_again_and_again_ends_the_command(tmp_path: Path) -> None:
    with serving(write_served_bank(tmp_path), "--max-restarts", "1") as served:
        os.kill(stub_of(served), signal.SIGKILL)
        wait_until(lambda: answers(served), within_s=30)
        os.kill(stub_of(served), signal.SIGKILL)
        assert served.process.wait(timeout=30) == 1
        assert served.process.stdout is not None
        said: Any = served.process.stdout.read()
    assert "model 'pidep_bank': its process has ended; loading it again" in said
    assert "model 'pidep_bank': its process has ended, after 1 restarts in ten minutes" in said
