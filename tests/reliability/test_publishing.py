"""Rows 3, 5, 6, 11 to 13, 27, 36 and 39: what a publication leaves, whatever happens to it."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pidep.artifacts.parity import Parity
from pidep.errors import ExpertError, ParityError, PidepError, ServingError, UsageError
from pidep.experts.folder import Expert, write_expert
from pidep.export.parity import check_effect, effect_of
from pidep.runtime.bank import Bank
from pidep.serving import Client, ExpertStore, Request, routes, swap_expert
from pidep.serving.collect import collect_garbage
from pidep.serving.manage import Place, change
from pidep.serving.repository import models_in
from pidep.serving.server import TritonServer, free_ports
from pidep.serving.watcher import Watcher
from tests.cli.run import Done, untouched
from tests.reliability.conftest import Row, store_of
from tests.reliability.load import Load
from tests.serving.experts import small_expert
from tests.serving.served import wait_until
from tests.serving.small_bank import write_served_bank
from tests.serving.whole_store import check_whole

A, B, C, D = (small_expert(seed=seed) for seed in (0, 2, 3, 4))


def answers_by(server: TritonServer, name: str) -> str:
    with Client(server.grpc_url) as client:
        return client.infer([Request("good", name)])[0].digest


@contextmanager
def stable(server: TritonServer) -> Iterator[ExpertStore]:
    """The server's store; `film` is A again at the end."""
    store = ExpertStore(store_of(server))
    try:
        yield store
    finally:
        swap_expert("film", A, server.repo, server.grpc_url)


@pytest.mark.server
def test_row_3_rollback_to_older_files(row: Row, server: TritonServer) -> None:
    place = Place(server.repo, (server.grpc_url,))
    tried = row.size(2, 50)
    with stable(server) as store:
        for number in range(tried):
            new = small_expert(seed=100 + number)
            swap_expert("film", new, server.repo, server.grpc_url)
            # Files of the version that comes back, from long ago or from the future.
            for path in store.version(A.digest).iterdir():
                os.utime(path, (1e9, 1e9) if number % 2 else (4e9, 4e9))
            change(place, "film", lambda one: routes.rollback(one, "film", to=A.digest))
            assert answers_by(server, "film") == A.digest
        swap_expert("film", B, server.repo, server.grpc_url)
        (store.version(A.digest) / "labels.safetensors").write_bytes(b"")
        with pytest.raises(ExpertError, match=r"labels\.safetensors"):
            change(place, "film", lambda one: routes.rollback(one, "film", to=A.digest))
        assert answers_by(server, "film") == B.digest
    row.shows(
        "rollback to older files serves the old digest, or the command fails",
        target="every rollback",
        measured=f"{tried} rollbacks served the old digest, 1 to damaged files was refused",
        met=True,
    )


def idle_expert() -> Expert:
    """An expert that is whole and answers as the bare backbone does."""
    zeros = {"lora_A": np.zeros((2, 4), np.float32), "lora_B": np.zeros((4, 2), np.float32)}
    return replace(small_expert(seed=9), sites={"layer.0": zeros})


@pytest.mark.server
def test_row_5_a_broken_new_version(
    row: Row, server: TritonServer, tmp_path: Path, inside: Callable[..., Done]
) -> None:
    write_expert(small_expert(seed=8), tmp_path / "cut")
    os.truncate(tmp_path / "cut" / "adapter_model.safetensors", 300)
    write_expert(idle_expert(), tmp_path / "idle")
    codes = []
    with Load(server.http_url, server.grpc_url, connections=8, pause_s=0.02) as load:
        for run in ("cut", "idle", "absent"):
            target = ("--repo", server.repo, "--url", server.grpc_url, "--timeout", "5")
            done = inside("swap", "film", tmp_path / run, *target)
            codes.append(done.code)
            assert done.err.count("\n") == 1, done.err
    assert not load.lost
    assert not load.errors
    old = sum(one.digest == A.digest for one in load.all)
    row.shows(
        "a broken new version: non-zero exit, the old one serves 100 %",
        target="exit codes not 0, 100 %",
        measured=f"exit codes {codes}, {old} of {len(load.all)} answers by the old version",
        met=0 not in codes and old == len(load.all) > 0,
    )


def test_row_6_a_missing_model_py(row: Row, tmp_path: Path) -> None:
    repo = write_served_bank(tmp_path)
    (repo / "pidep_bank" / "1" / "model.py").unlink()
    started = time.perf_counter()
    with pytest.raises(UsageError, match=r"version 1 lacks model\.py; export it again"):
        models_in(repo)
    with pytest.raises(UsageError, match=r"version 1 lacks model\.py"):
        TritonServer(repo).start()
    took = time.perf_counter() - started
    row.shows(
        "a missing model.py is refused before the load",
        target="refused",
        measured=f"refused in {1000 * took:.1f} ms, no server was started",
        met=took < 1,
    )


CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "tempfile.mkdtemp"}
"""What changes a disk, as Python's audit hooks name it; and every `open` that makes a file."""
STEPS: dict[str, Callable[[ExpertStore], object]] = {
    "add": lambda store: routes.add(store, "book", C),
    "promote": lambda store: routes.promote(store, "film", C),
    "canary": lambda store: routes.set_canary(store, "film", C, weight=0.5),
    "rollback": lambda store: routes.rollback(store, "film"),
    "remove": lambda store: routes.remove(store, "film"),
    "gc": lambda store: collect_garbage(store, keep=1),
}


def in_child(work: Callable[[], object], *, before: Callable[[], object]) -> int:
    """Exit code of a child: 0 where it came to the end, 3 after an error of one line."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 1
    try:
        before()
        work()
        code = 0
    except (PidepError, OSError):
        code = 3
    finally:
        os._exit(code)


def at_step(step: int, then: Callable[[], object]) -> None:
    """Call a function before the nth change of the disk, and before each one after it."""
    left = step

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & os.O_CREAT
        if event in CHANGES or writes:
            left -= 1
            if left < 0:
                then()

    sys.addaudithook(count)


def make_start(folder: Path) -> ExpertStore:
    store = ExpertStore(folder)
    routes.add(store, "film", A)
    routes.promote(store, "film", B)
    routes.set_shadow(store, "film", D)
    routes.end_shadow(store, "film")
    return store


def copied(start: ExpertStore, folder: Path) -> ExpertStore:
    shutil.copytree(start.folder, folder)
    return ExpertStore(folder)


def test_row_11_kill_at_every_step_of_publishing(row: Row, tmp_path: Path) -> None:
    start = make_start(tmp_path / "start")
    before, kills = start.manifest(), 0
    for name, operation in STEPS.items():
        step, ended, seen = 0, False, set()
        while not ended:
            store = copied(start, tmp_path / f"{name}-{step}")
            code = in_child(
                lambda: operation(store),  # noqa: B023
                before=lambda: at_step(step, lambda: os.kill(os.getpid(), signal.SIGKILL)),  # noqa: B023
            )
            ended = code == 0
            assert code in (0, -signal.SIGKILL)
            check_whole(store)
            seen.add(store.manifest().revision)
            # Again, as after a kill.
            operation(store)
            check_whole(store)
            collect_garbage(store, keep=1)
            assert not list(store.versions.glob(".*"))
            final = store.manifest().routes
            shutil.rmtree(store.folder)
            step += 1
        kills += step - 1
        assert step > 3
        changes = {before.revision, before.revision + 1}
        assert seen == ({before.revision} if name == "gc" else changes)
        expected = copied(start, tmp_path / f"{name}-expected")
        operation(expected)
        assert final == expected.manifest().routes
    row.shows(
        "kill -9 at every step of add, promote, canary, rollback, remove and gc",
        target="old or new; running it again is harmless",
        measured=f"{kills} kills, each left the old state or the new one",
        met=True,
    )


def test_row_12_two_promotes_at_once(row: Row, tmp_path: Path) -> None:
    store = ExpertStore(tmp_path / "store")
    routes.add(store, "film", A)
    rounds = row.size(5, 200)
    for number in range(rounds):
        mine, both = [small_expert(seed=1000 + 2 * number + at) for at in (0, 1)], []
        starting = threading.Barrier(2)

        def promote(expert: Expert) -> None:
            # Each command looks at the route when it starts.
            own = store.unless_changed("film")
            starting.wait()  # noqa: B023
            try:
                both.append(routes.promote(own, "film", expert).new)  # noqa: B023
            except ServingError as error:
                both.append(str(error))  # noqa: B023

        threads = [threading.Thread(target=promote, args=(one,)) for one in mine]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        won, told = sorted(both, key=lambda one: not one.startswith("sha256:"))
        assert store.manifest().aliases["film"] == won
        assert "another process has changed 'film' meanwhile" in told
        assert store.manifest().revision == number + 2
    row.shows(
        "two promotes at once: one wins, the other gets a clean conflict",
        target="every round",
        measured=f"{rounds} rounds, one winner and one conflict in each",
        met=True,
    )


def no_space() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def only_files_of(size: int) -> None:
    """No file grows over this size: a write fails, as it does on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def test_row_13_disk_full_while_publishing(row: Row, tmp_path: Path) -> None:
    start = make_start(tmp_path / "start")
    fulls: list[Callable[[], object]] = [
        lambda size=size: only_files_of(size) for size in range(0, 2000, row.size(399, 7))
    ]
    fulls += [lambda step=step: at_step(step, no_space) for step in range(0, 40, row.size(3, 1))]
    failed = 0
    for number, full in enumerate(fulls):
        store = copied(start, tmp_path / f"at-{number}")
        code = in_child(lambda: routes.promote(store, "film", C), before=full)  # noqa: B023
        assert code in (0, 3), code
        check_whole(store)
        digest = store.manifest().aliases["film"]
        assert digest == (C.digest if code == 0 else B.digest)
        failed += code == 3
        # Nothing half-visible: whatever has the name of a version is one.
        for version in store.versions.glob("[0-9a-f]*"):
            store.load(f"sha256:{version.name}")
        routes.promote(store, "film", C)
        assert store.manifest().aliases["film"] == C.digest
        shutil.rmtree(store.folder)
    row.shows(
        "disk full while publishing: old state intact, nothing half-visible",
        target="every step and every size",
        measured=f"{failed} failed publications left the old state",
        met=failed > 5,
    )


def test_row_27_clocks_and_frozen_mtimes(row: Row, tmp_path: Path) -> None:
    repo = write_served_bank(tmp_path)
    store = ExpertStore(tmp_path / "expert_store")
    watcher = Watcher(Bank(repo / "pidep_bank" / "1"), store)
    watcher.start()
    frozen = store.manifest_path.stat().st_mtime_ns
    worst, changes = 0.0, 0
    hour = 3600 * 10**9
    try:
        for number in range(row.size(2, 40)):
            for offset in (0, -hour, hour, None):

                def follows(digest: str) -> None:
                    nonlocal worst, changes
                    at = frozen if offset is None else time.time_ns() + offset  # noqa: B023
                    os.utime(store.manifest_path, ns=(at, at))
                    started = time.monotonic()
                    wait_until(lambda: watcher.residents.digests["film"] == digest, within_s=5)
                    worst, changes = max(worst, time.monotonic() - started), changes + 1

                new = small_expert(seed=300 + number)
                routes.promote(store, "film", new)
                follows(new.digest)
                routes.rollback(store, "film", to=A.digest)
                follows(A.digest)
    finally:
        watcher.stop()
    row.shows(
        "clock ±1 h and frozen mtimes: promote and rollback are right",
        target="followed within 5 s",
        measured=f"{changes} changes followed, the slowest in {worst:.2f} s",
        met=worst < 5,
    )


@pytest.mark.server
def test_row_36_effect_proof(row: Row, server: TritonServer) -> None:
    refused = 0
    logits = np.ones((5, 2), np.float32)
    figures = Parity(
        rows=5,
        max_abs=0.0,
        max_relative=0.0,
        argmax_flips=0,
        metric="accuracy",
        metric_torch=1.0,
        metric_exported=1.0,
        effect=effect_of(logits, logits),
    )
    # The whole export of such an expert is in `tests/export/test_gate.py`.
    with pytest.raises(ParityError, match="changes no logit of 5 rows"):
        check_effect("film", figures)
    refused += 1
    with stable(server) as store:
        # At a swap: whole, and moves no probe row.
        with pytest.raises(ServingError, match=r"refuses .* answers 2 probe rows as the bare"):
            swap_expert("film", idle_expert(), server.repo, server.grpc_url)
        refused += 1
        # At a swap: tensors of a site that the graph does not have.
        unbound = replace(A, sites={"layer.9": A.sites["layer.0"]})
        with untouched(store.folder), pytest.raises(ExpertError, match=r"'layer\.9' is not in the"):
            swap_expert("film", unbound, server.repo, server.grpc_url)
        refused += 1
        # At a load: a manifest names them, whoever wrote it.
        for number, bad in enumerate((idle_expert(), unbound)):
            name = f"bad-{number}"
            store.publish(bad, name)
            started = Watcher(Bank(server.repo / "pidep_bank" / "1"), store)
            started.refresh()
            assert started.status()["refused"][name]["digest"] == bad.digest
            assert name not in started.residents.digests
            routes.remove(store, name)
            refused += 1
        assert answers_by(server, "film") == A.digest
    row.shows(
        "an expert that binds to nothing or moves no probe row is refused at export, load and swap",
        target="all refused",
        measured=f"{refused} of 5 refused",
        met=refused == 5,
    )


@pytest.mark.server
def test_row_39_one_bad_version_in_the_manifest(row: Row, server: TritonServer) -> None:
    with stable(server) as store:
        bad = small_expert(seed=77)
        digest = swap_expert("bad", bad, server.repo, server.grpc_url).new_digest
        os.truncate(store.version(digest) / "adapter_model.safetensors", 100)
        good = {name: one for name, one in store.manifest().aliases.items() if name != "bad"}
        # The running server serves what it has; another one starts on the damaged version.
        assert {name: answers_by(server, name) for name in good} == good
        with TritonServer(server.repo, free_ports()) as restarted:
            with Client(restarted.grpc_url) as client:
                status = client.status()
                with pytest.raises(ServingError, match="'bad' is not served: its version sha256"):
                    client.infer([Request("good", "bad")])
            served = {name: answers_by(restarted, name) for name in good}
        assert "adapter_model.safetensors" in status["refused"]["bad"]["reason"]
        routes.remove(store, "bad")
    row.shows(
        "one bad version in the manifest is reported and refused, all other names are served",
        target="all others, also after a restart",
        measured=f"{len(served)} of {len(good)} other names served",
        met=served == good == status["served"],
    )
