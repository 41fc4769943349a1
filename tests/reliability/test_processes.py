"""Rows 7 to 10 and 14: processes that die, stop or find no shared memory, under traffic."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pidep.errors import PidepError, ServingError
from pidep.serving import Client, ExpertStore, Request, swap_expert
from pidep.serving.server import TritonServer, free_ports
from tests.reliability.conftest import Row
from tests.reliability.load import Load
from tests.serving.experts import small_expert
from tests.serving.served import Served, members, regions, serving, stub_of, wait_until
from tests.serving.small_bank import write_served_bank
from tests.serving.whole_store import check_whole

pytestmark = pytest.mark.server

REFUSALS = {"404", "503", "UNAVAILABLE", "NOT_FOUND"}
"""How a server that stops or has no model refuses; and what a client sees of a cut connection."""
CUT = {"ConnectionRefusedError", "ConnectionResetError", "RemoteDisconnected", "BrokenPipeError"}


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    """`pidep serve` of the small bank."""
    with serving(write_served_bank(tmp_path)) as found:
        yield found


def is_ready(served: Served, *, timeout_s: float = 1.0) -> bool:
    try:
        with Client(served.url, timeout_s=timeout_s, retries=0) as client:
            return bool(client.status()["ready"])
    except ServingError:
        return False


def is_calm(load: Load) -> bool:
    """Whether nothing has failed for two seconds."""
    return all(one.done < time.monotonic() - 2 for one in load.all if one.error)


def load_of(served: Served, connections: int) -> Load:
    http = f"127.0.0.1:{served.ports.http}"
    return Load(http, served.url, connections=connections, pause_s=0.05)


def test_row_7_kill_of_a_python_stub(row: Row, served: Served) -> None:
    recovered = []
    with load_of(served, row.size(8, 32)) as load:
        for _ in range(row.size(1, 3)):
            time.sleep(0.3)
            first, killed = stub_of(served), time.monotonic()
            assert first is not None
            os.kill(first, signal.SIGKILL)
            # The supervisor ends the server, and with it every request, so errors are seen soon.
            wait_until(lambda: any(one.error and one.done > killed for one in load.all))  # noqa: B023
            seen = time.monotonic() - killed
            wait_until(lambda: is_ready(served), within_s=30)
            # Connections come back one after the other: gRPC waits a second before it tries again.
            wait_until(lambda: is_calm(load), within_s=30)
            last = max(one.done for one in load.all if one.error)
            recovered.append((killed, seen, last - killed))
            assert stub_of(served) != first
        time.sleep(0.5)
    late = [
        one
        for one in load.all
        if one.error and not any(at <= one.done and one.sent <= at + d for at, _, d in recovered)
    ]
    seen_s, recovery_s = (max(one[at] for one in recovered) for at in (1, 2))
    row.shows(
        "kill -9 of a Python stub",
        target="seen within 5 s, recovered within 30 s, errors only in that window",
        measured=f"seen after {seen_s:.2f} s, recovered after {recovery_s:.2f} s, "
        f"{len(late)} of {len(load.all)} requests failed outside the window, {load.lost} lost",
        met=seen_s < 5 and recovery_s < 30 and not late and not load.lost,
        errors=dict(load.errors),
    )


def test_row_8_a_stopped_stub(row: Row, served: Served) -> None:
    first, stopped = stub_of(served), time.monotonic()
    assert first is not None
    os.kill(first, signal.SIGSTOP)
    with Client(served.url, timeout_s=0.3, retries=0) as client:
        try:
            client.infer([Request("good", "film")])
            said = ""
        except ServingError as error:
            said = str(error)
    # Or repaired already: the supervisor sees a stopped process within a second.
    wait_until(lambda: not is_ready(served) or stub_of(served) != first, within_s=10)
    not_ready_s = time.monotonic() - stopped
    wait_until(lambda: is_ready(served), within_s=30)
    took = time.monotonic() - stopped
    assert stub_of(served) != first
    row.shows(
        "SIGSTOP of a stub",
        target="not ready within 10 s, clients get deadline errors",
        measured=f"not ready after {not_ready_s:.1f} s, clients are told "
        f"{'their deadline or that the model is gone' if said else 'nothing'}; answers again after "
        f"{took:.1f} s",
        met=not_ready_s < 10 and bool(said),
        said=said,
    )


class Swapping(threading.Thread):
    """Swaps `film` on and on, until the server is gone."""

    def __init__(self, repo: Path, url: str) -> None:
        super().__init__()
        self.repo, self.url = repo, url
        self.stopped = threading.Event()
        self.done = 0

    def run(self) -> None:
        number = 0
        while not self.stopped.is_set():
            number += 1
            try:
                swap_expert("film", small_expert(seed=number % 8), self.repo, self.url, timeout_s=3)
                self.done += 1
            except PidepError:
                time.sleep(0.02)  # the server is gone or comes back


@contextmanager
def swapping(repo: Path, url: str) -> Iterator[Swapping]:
    """Swaps inside the block."""
    thread = Swapping(repo, url)
    thread.start()
    try:
        wait_until(lambda: thread.done > 1)
        yield thread
    finally:
        thread.stopped.set()
        thread.join()


def whole_after_restart(repo: Path) -> bool:
    """Whether a server that starts now answers every name by the manifest's version."""
    store = ExpertStore(repo.parent / "expert_store")
    check_whole(store)
    with TritonServer(repo, free_ports()) as server, Client(server.grpc_url) as client:
        names = store.manifest().aliases
        served = {name: client.infer([Request("good", name)])[0].digest for name in names}
    return served == names


def test_row_9_sigterm_in_the_middle_of_a_swap(row: Row, tmp_path: Path) -> None:
    repo = write_served_bank(tmp_path)
    rounds, cut, requests, valid = row.size(1, 3), 0, 0, 0
    for _ in range(rounds):
        with serving(repo) as served:
            with load_of(served, row.size(8, 32)) as load, swapping(repo, served.url):
                time.sleep(0.3)
                served.process.send_signal(signal.SIGTERM)
                wait_until(lambda: served.process.poll() is not None)
            assert served.process.returncode == 0
            assert not members(served.folder)
            assert not regions(served.folder)
        # A request in flight is answered or refused whole. Connections that come later find nobody.
        odd = {one for one in load.errors if one not in REFUSALS | CUT}
        assert not odd, odd
        assert not load.lost
        cut += sum(
            one.error in {"RemoteDisconnected", "ConnectionResetError"} and one.ms > 50
            for one in load.all
        )
        requests += len(load.all)
        valid += whole_after_restart(repo)
    row.shows(
        "SIGTERM in the middle of a swap",
        target="requests in flight finish, one valid state after the restart",
        measured=f"{cut} of {requests} requests cut off, {valid} of {rounds} restarts valid",
        met=cut == 0 and valid == rounds,
    )


def test_row_10_kill_of_the_server_in_the_middle_of_a_swap(row: Row, tmp_path: Path) -> None:
    repo = write_served_bank(tmp_path)
    rounds, left, valid = row.size(1, 3), 0, 0
    for _ in range(rounds):
        with serving(repo, "--max-restarts", "0") as served:
            with load_of(served, 8) as load, swapping(repo, served.url):
                time.sleep(0.3)
                os.kill(min(members(served.folder)), signal.SIGKILL)
                assert served.process.wait(timeout=30) == 1
            wait_until(lambda: not members(served.folder))
            left += len(regions(served.folder)) + served.folder.exists()
        assert not load.lost
        valid += whole_after_restart(repo)
    row.shows(
        "kill -9 of the server in the middle of a swap",
        target="one valid state after the restart, no orphan, no shared memory left",
        measured=f"{valid} of {rounds} restarts valid, 0 processes and {left} regions left",
        met=valid == rounds and not left,
    )


SMALL_SHM = "1500k"
CROWDED = """
import sys, time
from pathlib import Path
from pidep.errors import PidepError
from pidep.serving import Client, Request
from pidep.serving.server import TritonServer, free_ports

repo, rounds = Path(sys.argv[1]), int(sys.argv[2])
large = [Request("good " * 12_000, "film")] * 40
with TritonServer(repo, free_ports()) as server, Client(server.grpc_url) as client:
    errors = 0
    for _ in range(rounds):
        client.infer([Request("good", "film")])
        try:
            client.infer(large)
        except PidepError as error:
            errors += 1
            print("said:", error)
        client.infer([Request("good", "film")] * 8)
    files = sum(path.stat().st_size for path in Path("/dev/shm").iterdir())
    print(errors, "errors", files)
"""


def has_namespaces() -> bool:
    """Whether this user may mount a small /dev/shm of its own."""
    try:
        return not subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not has_namespaces(), reason="needs user namespaces (unshare -rm)")
def test_row_14_shared_memory_is_full(row: Row, tmp_path: Path) -> None:
    repo, rounds = write_served_bank(tmp_path), row.size(1, 20)
    script = tmp_path / "crowded.py"
    script.write_text(CROWDED)
    mount = f"mount -t tmpfs -o size={SMALL_SHM} tmpfs /dev/shm && exec "
    command = f"{mount}{sys.executable} {script} {repo} {rounds}"
    root = Path(__file__).parents[2]
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", command],
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, "PYTHONPATH": str(root), "TMPDIR": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    errors = int(done.stdout.splitlines()[-1].split()[0])
    row.shows(
        "/dev/shm full",
        target="an error per request, and it recovers",
        measured=f"{errors} of {rounds} large requests got an error each, small ones before and "
        "after each of them were answered",
        met=errors == rounds,
        said=done.stdout.splitlines()[0],
    )
