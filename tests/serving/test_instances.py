"""A change is done when every server answers by it; a canary is promoted or taken back."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from pidep.artifacts.manifest import Route
from pidep.errors import ServingError, UnreachableError, UsageError
from pidep.serving import Client, ExpertStore, Request, routes
from pidep.serving.auto_rollout import Evidence, Rules, decide, watch_canary
from pidep.serving.history import changes_of
from pidep.serving.instances import Instances, confirmed
from tests.cli.run import nobody
from tests.serving.experts import small_expert
from tests.serving.rolled_out import LONG, behind, failing_expert, model_of
from tests.serving.small_bank import write_small_bank

A, B = (small_expert(seed=seed) for seed in range(2))


@pytest.fixture
def store(tmp_path: Path) -> ExpertStore:
    write_small_bank(tmp_path / "repo")
    store = ExpertStore(tmp_path / "expert_store")
    routes.add(store, "film", A)
    return store


@pytest.fixture
def urls(
    store: ExpertStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[str, str]]:
    """Two servers of one store."""
    with ExitStack() as stack:
        models = [model_of(tmp_path / "repo", monkeypatch) for _ in range(2)]
        one, two = (stack.enter_context(behind(model)).url for model in models)
        yield one, two
        for model in models:
            model.finalize()


def answered_by(url: str, name: str = "film") -> str:
    with Client(url) as client:
        return client.infer([Request("good", name)])[0].digest


def test_each_change_returns_when_all_servers_answer_by_it(
    store: ExpertStore, urls: tuple[str, str]
) -> None:
    with Instances(urls) as instances:

        def changed(change: Any) -> None:
            confirmed(store, "film", change, instances=instances)

        changed(lambda: routes.promote(store, "film", B))
        assert {answered_by(url) for url in urls} == {B.digest}
        changed(lambda: routes.set_canary(store, "film", A, weight=0.5))
        assert {answered_by(url, "film@canary") for url in urls} == {A.digest}
        changed(lambda: routes.end_canary(store, "film"))
        with pytest.raises(ServingError, match="unknown expert 'film@canary'"):
            answered_by(urls[0], "film@canary")
        changed(lambda: routes.rollback(store, "film"))
        assert {answered_by(url) for url in urls} == {A.digest}
        changed(lambda: routes.remove(store, "film"))
        with pytest.raises(ServingError, match="unknown expert"):
            answered_by(urls[1])


def test_nothing_is_changed_where_a_server_is_away(
    store: ExpertStore, urls: tuple[str, str]
) -> None:
    before = store.manifest()
    with Instances([urls[0], nobody()], timeout_s=2.0) as instances:
        with pytest.raises(UnreachableError):
            confirmed(store, "film", lambda: routes.promote(store, "film", B), instances=instances)
    assert store.manifest() == before


def test_a_server_that_does_not_follow_is_named_and_the_route_is_put_back(
    store: ExpertStore,
    urls: tuple[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_small_bank(tmp_path / "elsewhere" / "repo")
    other = model_of(tmp_path / "elsewhere" / "repo", monkeypatch)
    with behind(other) as apart, Instances([*urls, apart.url], timeout_s=0.5) as instances:
        message = rf"'film': 1 of 3 servers did not follow revision 2 .* {apart.url}: it follows"
        with pytest.raises(ServingError, match=message + " revision 0; the former route is back"):
            confirmed(store, "film", lambda: routes.promote(store, "film", B), instances=instances)
    other.finalize()
    assert store.manifest().routes["film"] == Route(stable=A.digest)
    assert changes_of(store.folder, "film", store.manifest())[-1].action == "undo"


def ask_all(urls: tuple[str, str], stop: threading.Event, text: str, found: list[str]) -> None:
    with ExitStack() as stack:
        clients = [stack.enter_context(Client(url)) for url in urls]
        number = 0
        while not stop.is_set():
            for client in clients:
                rows = [Request(text, "film", key=str(number + at)) for at in range(16)]
                found += [one.digest for one in client.infer(rows)]
                number += 16


@pytest.mark.parametrize("bad", [False, True])
def test_a_canary_is_promoted_or_taken_back_while_clients_ask(
    store: ExpertStore, urls: tuple[str, str], bad: bool
) -> None:
    candidate = failing_expert() if bad else B
    stop, found = threading.Event(), list[str]()
    text = LONG if bad else "good"
    asking = threading.Thread(target=ask_all, args=(urls, stop, text, found))
    with Instances(urls) as instances:
        asking.start()
        try:
            canary = lambda: routes.set_canary(store, "film", candidate, weight=0.3)  # noqa: E731
            confirmed(store, "film", canary, instances=instances)
            # The labels of random experts differ, and times of a busy machine do.
            rules = Rules(rows=100, max_drift=1.0, max_slowdown=100.0)
            watch = lambda: watch_canary(  # noqa: E731
                store, "film", candidate.digest, instances=instances, rules=rules
            )
            if bad:
                message = r"canary of 'film' rolled back: .*: \d+ of \d+ rows failed, 0 of \d+ of"
                with pytest.raises(ServingError, match=message):
                    watch()
            else:
                watch()
        finally:
            stop.set()
            asking.join()
    # The thread would have ended with an error; every row was answered, by A where B failed.
    assert set(found) == {A.digest} if bad else {A.digest, B.digest}
    last = changes_of(store.folder, "film", store.manifest())[-1]
    assert last.after == Route(stable=A.digest if bad else B.digest)
    assert last.action == ("rollback" if bad else "promote")


def test_a_canary_that_somebody_changes_is_left(store: ExpertStore, urls: tuple[str, str]) -> None:
    with Instances(urls) as instances, pytest.raises(ServingError, match="has changed the route"):
        watch_canary(store, "film", B.digest, instances=instances, rules=Rules())


def test_a_canary_without_traffic_is_taken_back_in_time(
    store: ExpertStore, urls: tuple[str, str]
) -> None:
    routes.set_canary(store, "film", B, weight=0.5)
    with Instances(urls) as instances, pytest.raises(ServingError, match=r"no verdict within 0\.3"):
        watch_canary(store, "film", B.digest, instances=instances, rules=Rules(within=0.3))
    assert store.manifest().routes["film"] == Route(stable=A.digest)


def evidence(rows: int, *, errors: int = 0, yes: int = 0, ms: float = 1.0) -> Evidence:
    labels = Counter({"yes": yes, "no": rows - yes})
    return Evidence(rows, errors, labels, {"1": [rows, rows * ms]})


@pytest.mark.parametrize(
    ("canary", "verdict"),
    [
        (evidence(999, yes=500), None),
        (evidence(1000, yes=500), ""),
        (evidence(1000, yes=560), ""),
        (evidence(1000, yes=620), "label 'no' has a share of 0.380, and 0.500 of the stable"),
        (evidence(30, errors=2), None),
        (evidence(30, errors=3), "3 of 30 rows failed, 0 of 9000 of the stable version"),
        (evidence(1000, yes=500, errors=9), ""),
        (evidence(1000, yes=500, ms=1.4), ""),
        (evidence(1000, yes=500, ms=2.0), "a run takes 2.00 times as long"),
    ],
)
def test_the_verdict(canary: Evidence, verdict: str | None) -> None:
    found = decide(evidence(9000, yes=4500), canary, Rules())
    assert found == verdict if not verdict else str(found).startswith(verdict)


def test_times_of_other_sizes_are_not_compared() -> None:
    stable = Evidence(9000, 0, Counter(yes=9000), {"64": [100, 100.0]})
    canary = Evidence(1000, 0, Counter(yes=1000), {"1": [1000, 9000.0]})
    assert decide(stable, canary, Rules()) == ""


@pytest.mark.parametrize(
    ("change", "message"),
    [({"rows": 0}, "`rows`: expected at least 1"), ({"within": 0.0}, "`within`")],
)
def test_rules_that_make_no_sense_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Rules(**change)
