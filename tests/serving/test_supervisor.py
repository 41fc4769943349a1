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
from tests.serving.served import Served, members, regions, serving, stub_of, wait_until
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


def answers(served: Served, *, timeout_s: float = 2.0) -> bool:
    try:
        with Client(served.url, timeout_s=timeout_s) as client:
            return bool(client.status()["ready"])
    except ServingError:
        return False


def hanging_bank(folder: Path) -> Path:
    """A repository whose bank hangs at a row with the word `hang`."""
    repo = write_served_bank(folder)
    version = repo / "pidep_bank" / "1"
    record = BankRecord.read(version)
    (version / "model.py").write_text(HANGS)
    record.sealed(version).write(version)
    return repo


def kill(served: Served, sign: str = "SIGKILL") -> None:
    stub = stub_of(served)
    assert stub is not None
    os.kill(stub, signal.Signals[sign])


@pytest.mark.parametrize("sign", ["SIGKILL", "SIGSTOP"])
def test_a_stub_that_is_gone_is_replaced(tmp_path: Path, sign: str) -> None:
    with serving(write_served_bank(tmp_path)) as served:
        assert answers(served)
        first, started = stub_of(served), time.monotonic()
        kill(served, sign)
        assert not answers(served)
        wait_until(lambda: answers(served), within_s=30)
        assert time.monotonic() - started < 30
        assert stub_of(served) != first
        # For a while nothing fails: what ended does not come back.
        for _ in range(20):
            assert answers(served)
    log = served.process.returncode
    assert log == 0


def test_a_stub_that_hangs_is_replaced(tmp_path: Path) -> None:
    with serving(hanging_bank(tmp_path)) as served:
        first, found = stub_of(served), []

        def hang() -> None:
            with Client(served.url, timeout_s=60) as client, pytest.raises(ServingError) as error:
                client.infer([Request("hang", "film")])
            found.append(str(error.value))

        asking = threading.Thread(target=hang)
        asking.start()
        wait_until(lambda: stub_of(served) not in (None, first), within_s=30)
        wait_until(lambda: answers(served), within_s=30)
        asking.join()
        assert found  # the request that hung has an answer, too: an error


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
        kill(served)
        wait_until(lambda: answers(served), within_s=30)
        kill(served)
        assert served.process.wait(timeout=30) == 1
        assert served.process.stdout is not None
        said: Any = served.process.stdout.read()
    assert "model 'pidep_bank': its process has ended; starting the server again" in said
    assert "model 'pidep_bank': its process has ended, after 1 restarts in ten minutes" in said


@pytest.mark.parametrize("sign", ["SIGKILL", "SIGSTOP"])
def test_requests_of_a_stub_that_is_gone_end_with_it(tmp_path: Path, sign: str) -> None:
    with serving(hanging_bank(tmp_path)) as served:
        waiting = Waiting(served)
        kill(served, sign)
        # Triton Server itself would leave them without an answer until their own deadline.
        assert waiting.ended_within_s() < 15
        wait_until(lambda: answers(served), within_s=30)


@pytest.mark.parametrize("sign", ["SIGKILL", "SIGSTOP"])
def test_a_command_that_gives_up_waits_for_no_request_of_a_stub_that_is_gone(
    tmp_path: Path, sign: str
) -> None:
    with serving(hanging_bank(tmp_path), "--max-restarts", "0") as served:
        waiting = Waiting(served)
        kill(served, sign)
        assert served.process.wait(timeout=20) == 1
        assert waiting.ended_within_s() < 15


class Waiting:
    """Three requests that a bank of `hanging_bank` does not answer."""

    def __init__(self, served: Served) -> None:
        self._served, self._found = served, list[str]()
        self._threads = [threading.Thread(target=self._ask) for _ in range(3)]
        for one in self._threads:
            one.start()
        time.sleep(0.5)
        self._started = time.monotonic()

    def ended_within_s(self) -> float:
        """Seconds from the start until all of them had an error."""
        for one in self._threads:
            one.join()
        assert len(self._found) == 3
        return time.monotonic() - self._started

    def _ask(self) -> None:
        with Client(self._served.url, timeout_s=60, retries=0) as client:
            try:
                client.infer([Request("hang", "film")])
            except ServingError as error:
                self._found.append(str(error))
