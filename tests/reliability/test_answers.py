"""Rows 22 to 24, 33 and 34: every answer is that of its own expert, also in a rollout."""

from __future__ import annotations

import math
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from pidep.errors import ServingError
from pidep.serving import Client, ExpertStore, Request, routes, swap_expert
from pidep.serving.auto_rollout import Rules
from pidep.serving.manage import Place, change, roll_out
from pidep.serving.server import TritonServer, free_ports
from tests.reliability.conftest import Row, store_of
from tests.reliability.load import Load
from tests.serving.experts import small_expert
from tests.serving.rolled_out import LONG as OVERFLOWS
from tests.serving.rolled_out import failing_expert
from tests.serving.small_bank import WORDS, write_served_bank

pytestmark = pytest.mark.server
A, B = small_expert(seed=0), small_expert(seed=2)
BOOK = small_expert(name="book", seed=1)
UNKNOWN = {"404", "NOT_FOUND"}


def test_row_22_an_unknown_expert(row: Row, server: TritonServer) -> None:
    names = ("film", "nobody", "book")
    with Load(server.http_url, server.grpc_url, names, connections=32, pause_s=0.02) as load:
        time.sleep(row.size(0.5, 10.0))
    unknown = [one for one in load.all if one.name == "nobody"]
    others = [one for one in load.all if one.name != "nobody"]
    digests = {"film": A.digest, "book": BOOK.digest}
    wrong = sum(one.digest != digests[one.name] for one in others)
    assert {one.error for one in unknown} <= UNKNOWN
    # Rows of one request that says so are answered alone, too.
    with Client(server.grpc_url) as client:
        rows = [Request("good", name) for name in names]
        first, refused, last = client.infer(rows, all_or_nothing=False)
    assert (first.digest, last.digest) == (A.digest, BOOK.digest)
    assert refused.error.startswith("NOT_FOUND: unknown expert 'nobody'")
    row.shows(
        "an unknown expert: NOT_FOUND for its request, its neighbours are answered",
        target="all",
        measured=f"{len(unknown)} requests NOT_FOUND, {wrong} of {len(others)} others wrong, "
        f"{load.lost} lost",
        met=not wrong and not load.lost and len(unknown) > 32,
    )


def test_row_23_mixed_experts_in_one_batch(row: Row, server: TritonServer) -> None:
    rng, worst, rows = np.random.default_rng(0), 0.0, 0
    tolerance = 1e-6
    with Client(server.grpc_url) as client:
        for _ in range(row.size(3, 200)):
            asked = [
                Request(" ".join(rng.choice(WORDS[2:], size=int(rng.integers(1, 9)))), str(name))
                for name in rng.choice(["film", "book"], size=int(rng.integers(2, 17)))
            ]
            mixed = client.infer(asked)
            for one, request in zip(mixed, asked, strict=True):
                (alone,) = client.infer([request])
                assert one.digest == alone.digest
                both = [(one.scores[label], alone.scores[label]) for label in alone.scores]
                worst = max([worst, *(abs(a - b) for a, b in both)])
                rows += 1
    row.shows(
        "mixed experts in one batch equal solo runs",
        target=f"scores within {tolerance:g}",
        measured=f"{worst:.2g} at most, over {rows} rows",
        met=worst <= tolerance,
    )


def test_row_24_a_response_cache(row: Row, tmp_path: Path) -> None:
    """pidep starts no cache. A configuration that asks for one is answered by the experts."""
    repo = write_served_bank(tmp_path)
    config = repo / "pidep_bank" / "config.pbtxt"
    config.write_text(config.read_text() + "\nresponse_cache { enable: true }\n")
    wrong, asked = 0, row.size(10, 500)
    with TritonServer(repo, free_ports()) as server, Client(server.grpc_url) as client:
        versions = {"film": A.digest, "book": BOOK.digest}
        for number in range(asked):
            for name, digest in versions.items():
                wrong += client.infer([Request("good film", name)])[0].digest != digest
            if number % 5 == 4:
                expert = (A, B)[number % 2]
                swap_expert("film", expert, repo, server.grpc_url)
                versions["film"] = expert.digest
    shutil.rmtree(repo)
    row.shows(
        "response cache asked for, same input, two experts, swaps",
        target="refused, or right",
        measured=f"{wrong} of {2 * asked} answers wrong (pidep serve starts no cache)",
        met=not wrong,
    )


def digests_by_key(client: Client, keys: list[str], text: str = "good") -> list[str]:
    found = []
    for at in range(0, len(keys), 64):
        rows = [Request(text, "film", key=key) for key in keys[at : at + 64]]
        found += [one.digest for one in client.infer(rows)]
    return found


def test_row_33_canary_shares(row: Row, server: TritonServer) -> None:
    place, number = Place(server.repo, (server.grpc_url,)), row.size(1024, 32_768)
    keys = [f"user-{at}" for at in range(number)]
    said, inside, sticky = [], True, True
    with Client(server.grpc_url) as client:
        for weight in (0.01, 0.1, 0.5):
            change(
                place,
                "film",
                lambda store: routes.set_canary(store, "film", B, weight=weight),  # noqa: B023
                served=B,
            )
            first = digests_by_key(client, keys)
            again = keys[: number // 4]
            sticky &= digests_by_key(client, again, "bad film") == first[: len(again)]
            assert set(first) == {A.digest, B.digest}
            share = first.count(B.digest) / number
            band = 3.29 * math.sqrt(weight * (1 - weight) / number)
            inside &= abs(share - weight) <= band
            said.append(f"{100 * share:.2f} % ({100 * weight:g} ± {100 * band:.2f})")
    change(place, "film", lambda store: routes.end_canary(store, "film"))
    row.shows(
        "canary of 1, 10 and 50 %",
        target="share within the binomial 99.9 % band, sticky by key",
        measured=f"{', '.join(said)}; sticky: {'yes' if sticky else 'no'}",
        met=inside and sticky,
        keys=number,
    )


class Asking(threading.Thread):
    """Asks `film` with many keys until it is stopped, with texts on which the canary fails."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.url = url
        self.stopped = threading.Event()
        self.digests: list[str] = []

    def run(self) -> None:
        with Client(self.url) as client:
            number = 0
            while not self.stopped.is_set():
                rows = [Request(OVERFLOWS, "film", key=f"{number + at}") for at in range(8)]
                number += len(rows)
                self.digests += [one.digest for one in client.infer(rows)]


def test_row_34_an_error_spike_in_the_canary(row: Row, server: TritonServer) -> None:
    place, bad = Place(server.repo, (server.grpc_url,)), failing_expert()
    rules, most, errors = Rules(rows=500, within=30.0), 0, 0
    rounds = row.size(1, 10)
    for _ in range(rounds):
        asking = Asking(server.grpc_url)
        asking.start()
        before = len(asking.digests)
        seen: list[int] = []
        try:
            with pytest.raises(ServingError, match="canary of 'film' rolled back"):
                roll_out(
                    place,
                    "film",
                    bad,
                    weight=0.1,
                    rules=rules,
                    progress=lambda evidence: seen.append(evidence.rows),  # noqa: B023
                )
        finally:
            asking.stopped.set()
            asking.join()
        most = max(most, seen[-1])
        # The stable version answers what the canary cannot; `infer` would have raised an error.
        errors += sum(one != A.digest for one in asking.digests[before:])
        store = ExpertStore(store_of(server))
        assert store.manifest().routes["film"].canary is None
    row.shows(
        "an error spike in the canary",
        target=f"rolled back within {rules.rows} requests to it, stable route has 0 errors",
        measured=f"rolled back after {most} rows at most in {rounds} rounds, {errors} errors",
        met=most <= rules.rows and not errors,
    )
