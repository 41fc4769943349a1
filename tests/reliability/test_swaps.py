"""Rows 1, 2, 4, 25, 26, 37 and 38: swaps, reloads and many residents under traffic."""

from __future__ import annotations

import os
import random
import signal
import statistics
import time
from bisect import bisect_right
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from pidep.runtime.bank import Bank
from pidep.serving import Client, ExpertStore, Request, routes, swap_expert
from pidep.serving.server import TritonServer, free_ports
from pidep.serving.stubs import stubs_of
from pidep.serving.watcher import Watcher
from tests.reliability.conftest import LONG, Row
from tests.reliability.load import GrpcLine, Load, Sent, metric, quantile_ms
from tests.serving.experts import small_expert
from tests.serving.small_bank import write_served_bank

SWAPS = 10_000 if LONG else 60
VERSIONS = 16


@dataclass(frozen=True)
class State:
    """What a server's processes hold."""

    swaps: int
    rss_mib: float
    files: int
    threads: int
    shared_bytes: int


def state_of(server: TritonServer, swaps: int) -> State:
    rss, files, threads = 0.0, 0, 0
    for pid in (server.pid, *(stub.pid for stub in stubs_of(server.pid))):
        process = Path(f"/proc/{pid}")
        found = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
        rss += int(found["VmRSS"].split()[0]) / 1024
        threads += int(found["Threads"])
        files += len(os.listdir(process / "fd"))
    regions = Path("/dev/shm").glob(f"{server.log_path.parent.name}-*")
    return State(swaps, rss, files, threads, sum(one.stat().st_size for one in regions))


@dataclass
class Churn:
    """Swaps of `film` under the traffic of 32 connections."""

    sent: list[Sent]
    lost: int
    started: list[float] = field(default_factory=list)
    """When each version was about to be published."""
    returned: list[float] = field(default_factory=list)
    """When the swap to it returned."""
    digests: list[str] = field(default_factory=list)
    scores: dict[str, tuple[float, ...]] = field(default_factory=dict)
    """What each digest answers in a quiet server."""
    states: list[State] = field(default_factory=list)

    @property
    def film(self) -> list[Sent]:
        """The answers of the name that is swapped."""
        return [one for one in self.sent if one.name == "film" and not one.error]

    def is_stale(self, one: Sent) -> bool:
        """Whether the version had been replaced before the request was sent."""
        current = bisect_right(self.returned, one.sent) - 1
        newest = bisect_right(self.started, one.done) - 1
        return one.digest not in self.digests[max(current, 0) : newest + 1]

    def is_mixed(self, one: Sent) -> bool:
        """Whether the scores are not those of the digest."""
        return not np.allclose(one.scores, self.scores[one.digest], rtol=0, atol=1e-6)


@pytest.fixture(scope="module")
def churn(tmp_path_factory: pytest.TempPathFactory) -> Churn:
    """All swaps of this module, made once."""
    repo = write_served_bank(tmp_path_factory.mktemp("churn"))
    experts = [small_expert(seed=number) for number in range(VERSIONS)]
    found = Churn([], 0)
    with TritonServer(repo, free_ports()) as server:
        quiet = GrpcLine(server.grpc_url)
        for expert in experts:
            swap_expert("film", expert, repo, server.grpc_url)
            found.scores[expert.digest] = quiet.ask("film").scores
        found.scores[small_expert(name="book", seed=1).digest] = quiet.ask("book").scores
        quiet.close()
        now = time.monotonic()
        found.started.append(now)
        found.returned.append(now)
        found.digests.append(experts[-1].digest)
        names = ("film", "film", "film", "book")
        with Load(server.http_url, server.grpc_url, names, pause_s=0.1 if LONG else 0.03) as load:
            for number in range(SWAPS):
                if number % (SWAPS // 20) == 0:
                    found.states.append(state_of(server, number))
                expert = experts[number % VERSIONS]
                found.started.append(time.monotonic())
                found.digests.append(expert.digest)
                swap_expert("film", expert, repo, server.grpc_url)
                found.returned.append(time.monotonic())
            found.states.append(state_of(server, SWAPS))
        found.sent, found.lost = load.all, load.lost
    return found


@pytest.mark.server
@pytest.mark.timeout(900)
def test_row_1_swaps_under_load(row: Row, churn: Churn) -> None:
    errors = Counter(one.error for one in churn.sent if one.error)
    mixed = sum(map(churn.is_mixed, churn.film))
    swap_ms = sorted(1e3 * (b - a) for a, b in zip(churn.started, churn.returned, strict=True))
    row.shows(
        f"{SWAPS:,} swaps under load",
        target="0 errors, every digest old or new, never mixed",
        measured=f"{len(churn.sent)} requests, {sum(errors.values())} errors, {churn.lost} lost, "
        f"{mixed} mixed",
        met=not errors and not churn.lost and not mixed and len(churn.sent) > SWAPS,
        swap_p50_ms=round(swap_ms[len(swap_ms) // 2], 1),
        request_p50_ms=round(quantile_ms(churn.sent, 0.5), 1),
        request_p99_ms=round(quantile_ms(churn.sent, 0.99), 1),
    )


@pytest.mark.server
def test_row_2_after_a_promote_returns(row: Row, churn: Churn) -> None:
    stale = sum(map(churn.is_stale, churn.film))
    row.shows(
        "after promote returns, no later request is answered by the old digest",
        target="0 stale answers",
        measured=f"{stale} of {len(churn.film)} answers stale, over {SWAPS:,} swaps",
        met=not stale and len(churn.film) > SWAPS // 2,
    )


@pytest.mark.server
def test_row_26_memory_over_swaps(row: Row, churn: Churn) -> None:
    warm = churn.states[len(churn.states) // 4 :]
    slope, _ = np.polyfit([one.swaps for one in warm], [one.rss_mib for one in warm], 1)
    growth = slope * (warm[-1].swaps - warm[0].swaps)
    flat = {
        what: max(getattr(one, what) for one in warm) - min(getattr(one, what) for one in warm)
        for what in ("files", "threads", "shared_bytes")
    }
    # A connection that a swap opens is there or not when the files are counted.
    met = growth < 16 and flat["files"] <= 4 and flat["threads"] <= 4 and not flat["shared_bytes"]
    row.shows(
        f"{SWAPS:,} swaps: memory slope about 0 after warm-up, files, threads and shared memory "
        "flat",
        target="below 16 MiB in all, 4 files, 4 threads, 0 bytes of shared memory",
        measured=f"{1000 * slope:.3f} MiB for 1,000 swaps ({growth:.1f} MiB), differences {flat}",
        met=met,
        states=[vars(one) for one in churn.states],
    )


@pytest.mark.server
def test_row_37_the_race(row: Row, churn: Churn) -> None:
    digests = {one.digest for one in churn.film}
    different = sum(map(churn.is_mixed, churn.sent))
    distinct = len(set(churn.scores.values())) == len(churn.scores)
    row.shows(
        "experts churn under 32 connections, every answer equals what its digest answers in a "
        "quiet server",
        target="every answer",
        measured=f"{different} of {len(churn.sent)} answers of {len(digests)} digests differ",
        met=not different and distinct and len(digests) == VERSIONS,
    )


@pytest.mark.server
def test_row_4_backbone_reload_under_load(row: Row, tmp_path: Path) -> None:
    repo = write_served_bank(tmp_path)
    ends = [
        reload_under_load(repo, connections=row.size(8, 32), seconds=row.size(0.5, 4.0))
        for _ in range(row.size(2, 6))
    ]
    kinds = Counter(kind for kind, _ in ends)
    slowdowns = [round(slowdown, 2) for kind, slowdown in ends if kind == "no error"]
    row.shows(
        "backbone reload under load, over gRPC",
        target="0 errors, p99 at most 2×",
        measured=f"of {len(ends)} reloads: {dict(kinds)}; p99 {slowdowns}×",
        met=set(kinds) == {"no error"} and (not row.is_long or max(slowdowns) <= 2),
    )


def reload_under_load(repo: Path, *, connections: int, seconds: float) -> tuple[str, float]:
    """What became of the connections, and how much slower the slowest percent was."""
    import tritonclient.grpc

    server = TritonServer(repo, free_ports())
    server.start()
    try:
        with Load(
            server.http_url,
            server.grpc_url,
            connections=connections,
            pause_s=0.1,
            timeout_s=5.0,
        ) as load:
            time.sleep(seconds / 2)
            before, started = list(load.all), time.monotonic()
            # Files count as new by a later time only.
            (repo / "pidep_bank" / "1" / "model.py").touch()
            channel = {"channel_args": [("grpc.enable_http_proxy", 0)]}
            with tritonclient.grpc.InferenceServerClient(server.grpc_url, **channel) as client:
                key = server.admin_headers()
                # The server may end meanwhile.
                with suppress(InferenceServerException):
                    client.load_model("pidep_bank", headers=key, client_timeout=20)
            time.sleep(seconds)
        during = [one for one in load.all if one.sent >= started]
        if server.ended() is not None:
            return "the server ended", 0.0
        if {"TimeoutError", "DEADLINE_EXCEEDED"} & set(load.errors):
            return "requests hung", 0.0
        if load.errors:
            return "requests refused", 0.0
        return "no error", quantile_ms(during, 0.99) / quantile_ms(before, 0.99)
    finally:
        # A server that hangs would be waited for.
        if server.ended() is None:
            os.kill(server.pid, signal.SIGKILL)
        server.stop()


def published(folder: Path, number: int) -> tuple[Path, ExpertStore]:
    """A repository and its store with that many experts, published in one revision."""
    repo = write_served_bank(folder)
    store = ExpertStore(folder / "expert_store")
    experts = {f"e{at}": small_expert(name=f"e{at}", seed=100 + at) for at in range(number)}
    with store.staged(experts) as commit:
        commit()
    return repo, store


def zipf(number: int, chance: random.Random) -> str:
    """A name, as Zipf's law spreads traffic: the nth is asked a nth as often as the first."""
    return f"e{min(int(number ** chance.random()), number) - 1}"


@pytest.mark.server
def test_row_25_many_experts_with_zipf_traffic(row: Row, tmp_path: Path) -> None:
    number = row.size(40, 1000)
    repo, store = published(tmp_path, number)
    digests = store.manifest().aliases
    bound = number // 2
    slot = Bank(repo / "pidep_bank" / "1").arena.bytes_per_slot
    with TritonServer(repo, free_ports(), resident_bytes=bound * slot) as server:
        with Load(
            server.http_url, server.grpc_url, lambda chance: zipf(number, chance), pause_s=0.02
        ) as load:
            time.sleep(row.size(0.3, 15.0))
        with Client(server.grpc_url) as client:
            state = client.status()
            client.infer([Request("good", "e0")])
            evicted = metric(server, "pidep_evictions_total")
            resident_bytes = metric(server, "pidep_resident_bytes")
    resident = len(state["served"]) - state["cold"]
    wrong = sum(one.digest != digests[one.name] for one in load.all)
    assert not load.lost
    assert not wrong
    assert set(state["served"]) == set(digests)
    row.shows(
        f"{number:,} experts, Zipf traffic: resident bound held, none in use is evicted",
        target=f"at most {bound} resident, 0 wrong",
        measured=f"{len(load.all)} requests for {len({one.name for one in load.all})} names, "
        f"{wrong} wrong, {resident} resident, {evicted:g} evicted",
        met=resident <= bound and resident_bytes <= bound * slot,
    )


def test_row_38_a_thousand_residents(row: Row, tmp_path: Path) -> None:
    counts = (10, row.size(100, 1000))
    banks, swaps, batches = {}, {}, {}
    for number in counts:
        repo, store = published(tmp_path / str(number), number)
        bank = Bank(repo / "pidep_bank" / "1")
        watcher = Watcher(bank, store)
        watcher.refresh()
        banks[number] = (bank, watcher, store)
        swaps[number], batches[number] = [], []
    fresh = [small_expert(seed=5000 + at) for at in range(4)]
    chance = random.Random(0)
    for at in range(row.size(8, 100)):
        # In turns, so that both meet the same moments of the machine.
        for number in counts:
            bank, watcher, store = banks[number]
            residents = watcher.residents
            asked = [zipf(number, chance) for _ in range(8)]
            started = time.perf_counter()
            bank.run(residents, ["good film"] * 8, asked)
            batches[number].append(1e3 * (time.perf_counter() - started))
            expert = fresh[at % 4]
            started = time.perf_counter()
            placed = bank.place(expert)
            assert not bank.probe(bank.serving({**residents.by_name, "e3": placed}), ["e3"])
            swaps[number].append(1e3 * (time.perf_counter() - started))
            routes.promote(store, "e3", expert)
            watcher.refresh()
            assert watcher.residents.digests["e3"] == expert.digest
    few, many = counts
    ratios = {
        what: statistics.median(times[many]) / statistics.median(times[few])
        for what, times in (("swap", swaps), ("batch", batches))
    }
    row.shows(
        f"{many:,} residents: time of a swap and of a batch as with {few}",
        target="within 10 %" if row.is_long else "within 100 %",
        measured=", ".join(f"{what} {ratio:.2f}×" for what, ratio in ratios.items()),
        met=max(ratios.values()) <= row.size(2.0, 1.1),
        swap_ms={str(number): statistics.median(found) for number, found in swaps.items()},
        batch_ms={str(number): statistics.median(found) for number, found in batches.items()},
    )
