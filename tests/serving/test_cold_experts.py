"""A bank with a bound in bytes: those used longest ago leave, and rows wait for what they name."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pidep.errors import ExpertError, OverloadError, ServingError
from pidep.experts.mixed import MixedExpert
from pidep.inputs.row import Row
from pidep.runtime import Bank
from pidep.runtime.bank import Resident
from pidep.serving import ExpertStore, routes
from pidep.serving.asked import Asked
from pidep.serving.batcher import Waiting
from pidep.serving.late_answers import LateAnswers
from pidep.serving.limits import RESIDENT_BYTES
from pidep.serving.recency import Recency
from pidep.serving.triton_model import TritonPythonModel
from pidep.serving.watcher import Watcher
from tests.serving.backend_utils import Request, counted, install, responses
from tests.serving.experts import small_expert
from tests.serving.small_bank import write_small_bank

NAMES = [f"e{at}" for at in range(8)]
EXPERTS = {name: small_expert(name=name, seed=at) for at, name in enumerate(NAMES)}
DIGESTS = {name: expert.digest for name, expert in EXPERTS.items()}


@pytest.fixture
def version(tmp_path: Path) -> Path:
    return write_small_bank(tmp_path / "repo")


def bytes_of(version: Path, slots: int) -> int:
    return Bank(version).arena.bytes_per_slot * slots


def bounded(version: Path, slots: int) -> Bank:
    return Bank(version, resident_bytes=bytes_of(version, slots))


def watching(bank: Bank) -> Watcher:
    watcher = Watcher(bank, ExpertStore(bank.store))
    watcher.start()
    return watcher


@pytest.fixture
def store(version: Path) -> ExpertStore:
    store = ExpertStore(Bank(version).store)
    for name, expert in EXPERTS.items():
        store.publish(expert, name)
    return store


def in_memory(watcher: Watcher) -> set[str]:
    return set(watcher.residents.by_name)


def test_a_bound_that_holds_no_expert_is_refused(version: Path) -> None:
    one = bytes_of(version, 1)
    with pytest.raises(ServingError, match=f"{one - 1} bytes for experts: one takes {one} in this"):
        Bank(version, resident_bytes=one - 1)


def test_in_process_the_bound_is_an_error(version: Path) -> None:
    with pytest.raises(ExpertError, match="3 experts are in memory, which is the bound"):
        bounded(version, 3).build(EXPERTS)


def test_at_the_start_the_first_ones_are_in_memory(version: Path, store: ExpertStore) -> None:
    watcher = watching(bounded(version, 3))
    assert in_memory(watcher) == {"e0", "e1", "e2"}
    # Also those that are not are served.
    assert watcher.residents.digests == DIGESTS
    assert watcher.status()["served"] == DIGESTS
    assert watcher.status()["cold"] == 5
    watcher.stop()


def test_those_used_longest_ago_leave(version: Path, store: ExpertStore) -> None:
    watcher = watching(bounded(version, 3))
    watcher.use(["e0", "e2"])
    assert watcher.warm(["e5"]).residents.by_name["e5"].digest == DIGESTS["e5"]
    assert in_memory(watcher) == {"e0", "e2", "e5"}
    assert (watcher.counts.evictions, watcher.counts.cold_loads) == (1, 1)
    assert watcher.counts.swaps == 1
    # What a call needs does not leave for what the same call needs: the rest comes next time.
    serving = watcher.warm(["e0", "e1", "e2", "e3"])
    assert set(serving.residents.by_name) == {"e0", "e1", "e2"}
    assert "e3" in serving.residents.cold
    del serving
    assert "e3" in watcher.warm(["e3"]).residents.by_name
    watcher.stop()


def test_what_a_batch_uses_is_not_written_over(version: Path, store: ExpertStore) -> None:
    bank = bounded(version, 1)
    watcher = watching(bank)
    held = watcher.serving
    wanted = threading.Thread(target=watcher.warm, args=(["e1"],))
    wanted.start()
    wanted.join(0.3)
    assert wanted.is_alive()  # it waits for the slot that the batch holds
    (answer,) = bank.run(held.residents, ["good"], ["e0"])
    assert not isinstance(answer, Exception)
    assert answer.digest == DIGESTS["e0"]
    del held
    wanted.join(20)
    assert not wanted.is_alive()
    assert in_memory(watcher) == {"e1"}
    watcher.stop()


def test_a_published_version_is_loaded_and_proved(version: Path, store: ExpertStore) -> None:
    watcher = Watcher(bounded(version, 2), store)
    watcher.refresh()
    # Of a name that was cold, of one in memory, and of more than fit together.
    for at, name in enumerate(["e7", "e0"]):
        new = store.publish(small_expert(name=name, seed=20 + at), name).new
        watcher.refresh()
        assert watcher.residents.by_name[name].digest == new
    fresh = {name: small_expert(name=name, seed=30 + at) for at, name in enumerate(NAMES)}
    with store.staged(fresh) as commit:
        commit()
    watcher.refresh()
    assert watcher.residents.digests == {name: one.digest for name, one in fresh.items()}
    assert len(in_memory(watcher)) == 2
    assert not watcher.residents.refused


def test_a_cold_version_that_is_damaged_is_refused_when_it_is_used(
    version: Path, store: ExpertStore
) -> None:
    watcher = watching(bounded(version, 2))
    weights = store.version(DIGESTS["e5"]) / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    residents = watcher.warm(["e5", "e6"]).residents
    assert set(residents.refused) == {"e5"}
    assert "e5" not in residents.digests
    assert "e6" in residents.by_name
    watcher.stop()


def test_a_name_with_a_candidate_stays_in_memory(version: Path, store: ExpertStore) -> None:
    watcher = Watcher(bounded(version, 3), store)
    watcher.refresh()
    routes.set_canary(store, "e7", small_expert(name="e7", seed=40), weight=0.5)
    watcher.refresh()
    assert {"e7", "e7@canary"} <= in_memory(watcher)
    assert list(watcher.serving.rollouts) == ["e7"]
    for at, name in enumerate(NAMES[:5]):
        new = store.publish(small_expert(name=name, seed=50 + at), name).new
        watcher.refresh()
        assert in_memory(watcher) == {"e7", "e7@canary", name}
        assert watcher.residents.digests[name] == new


def test_a_mixture_takes_the_slots_of_its_parts(version: Path, store: ExpertStore) -> None:
    parts = (EXPERTS["e0"], EXPERTS["e1"], EXPERTS["e2"])
    head = small_expert(name="mixture", seed=0)
    head = type(head)(**{**head.__dict__, "sites": {}, "scaling": 1.0})
    mixture = MixedExpert(head, parts, {"layer.0": (0.5, 0.25, 0.25)})
    store.publish(mixture, "mixture")
    watcher = watching(bounded(version, 3))
    assert watcher.warm(["mixture"]).residents.by_name["mixture"].digest == mixture.digest
    # Its parts are experts of their own, too, and share its slots.
    assert in_memory(watcher) == {"e0", "e1", "e2", "mixture"}
    watcher.stop()
    small = watching(bounded(version, 2))
    assert "mixture" in small.warm(["mixture"]).residents.refused
    small.stop()


# --- through the model of the server ----------------------------


@pytest.fixture
def model(
    version: Path, store: ExpertStore, monkeypatch: pytest.MonkeyPatch
) -> Iterator[TritonPythonModel]:
    install(monkeypatch)
    monkeypatch.setenv(RESIDENT_BYTES, str(bytes_of(version, 3)))
    model = TritonPythonModel()
    model.initialize({"model_repository": str(version.parent), "model_version": "1"})
    yield model
    model.finalize()


def asked(*experts: str) -> Request:
    return Request(
        {"TEXT": [b"good film"] * len(experts), "EXPERT": [one.encode() for one in experts]}
    )


def digests(model: TritonPythonModel, *requests: Request) -> list[list[str]]:
    found = responses(model, list(requests))
    assert not any(one.error for one in found)
    return [[row[0].decode() for row in one.arrays["DIGEST"]] for one in found]


def test_rows_of_cold_experts_are_answered(model: TritonPythonModel) -> None:
    # More names in a request than fit in memory together.
    assert digests(model, asked(*NAMES), asked("e0"), asked("e6", "e7")) == [
        list(DIGESTS.values()),
        [DIGESTS["e0"]],
        [DIGESTS["e6"], DIGESTS["e7"]],
    ]
    assert digests(model, asked("e7"))
    assert counted("pidep_resident_experts") == {"": 3}
    assert counted("pidep_cold_experts") == {"": 5}
    assert counted("pidep_cold_loads_total")[""] >= 5
    assert counted("pidep_evictions_total") == counted("pidep_cold_loads_total")
    assert counted("pidep_swaps_total") == {"": 1}


def test_an_unknown_expert_beside_cold_ones_fails_alone(model: TritonPythonModel) -> None:
    good, bad = responses(model, [asked("e7"), asked("e7", "nobody")])
    assert good.error is None
    assert bad.error is not None
    assert bad.error.code == "NOT_FOUND"
    assert "unknown expert 'nobody'; this server has: " in bad.error.text


def test_a_late_request_whose_time_has_passed_loads_nothing(model: TritonPythonModel) -> None:
    (found,) = responses(model, [Request(asked("e7").tensors, timeout_us=1)])
    assert found.error is not None
    assert found.error.code == "UNAVAILABLE"
    assert digests(model, asked("e0"))
    assert counted("pidep_cold_loads_total") == {"": 0}


def test_the_time_of_a_request_also_passes_where_it_waits_for_an_expert(
    version: Path, store: ExpertStore
) -> None:
    watcher, shed, found = watching(bounded(version, 1)), [], SimpleQueue()  # type: ignore[var-annotated]
    late = LateAnswers(
        watcher,
        lambda *_: [],
        shed=lambda reason, rows: shed.append((reason, rows)),
        done=lambda: None,
    )
    rows = [Asked(Row("good"), "e7")]
    late.add(Waiting(rows, found.put, timeout_s=0.001, since=time.monotonic() - 1))
    assert isinstance(found.get(timeout=20), OverloadError)
    assert shed == [("deadline", 1)]
    assert in_memory(watcher) == {"e0"}
    late.stop()
    watcher.stop()


def test_zipf_traffic_of_many_clients_is_answered_by_what_it_names(
    model: TritonPythonModel,
) -> None:
    wrong: list[str] = []

    def work(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(40):
            names = chance.choices(NAMES, weights=[1 / (at + 1) for at in range(8)], k=3)
            (found,) = digests(model, asked(*names))
            wrong.extend(
                name for name, one in zip(names, found, strict=True) if one != DIGESTS[name]
            )

    clients = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for one in clients:
        one.start()
    for one in clients:
        one.join(60)
    assert not any(one.is_alive() for one in clients)
    assert wrong == []


# --- who leaves ----------------------------


@given(
    slots=st.dictionaries(
        st.sampled_from("abcdef"), st.sets(st.integers(1, 6), min_size=1, max_size=3), min_size=1
    ),
    uses=st.lists(st.sampled_from("abcdef")),
    keep=st.sets(st.sampled_from("abcdef"), max_size=2),
    most=st.integers(0, 6),
)
def test_victims_are_the_first_of_those_used_longest_ago_and_no_more_than_needed(
    slots: dict[str, set[int]], uses: list[str], keep: set[str], most: int
) -> None:
    class Held:
        def __init__(self, number: int) -> None:
            self.number = number

    class Taken:
        def __init__(self, numbers: set[int]) -> None:
            self.slots = tuple(map(Held, numbers))

    recency = Recency()
    recency.use(uses)
    by_name: dict[str, Resident] = {name: Taken(own) for name, own in slots.items()}  # type: ignore[misc]
    victims = recency.victims(by_name, keep=keep, held=(), most=most)

    def left(gone: list[str]) -> int:
        return len(set().union(*(own for name, own in slots.items() if name not in gone), set()))

    last = {name: at for at, name in enumerate(uses)}
    order = sorted(slots.keys() - keep, key=lambda name: last.get(name, -1))
    if victims is None:
        assert left(order) > most
        return
    assert left(victims) <= most
    assert not victims or left(victims[:-1]) > most
    assert not set(victims) & keep
    times = [last.get(name, -1) for name in victims]
    assert times == sorted(times)
    others = [last.get(name, -1) for name in order if name not in victims]
    assert not (times and others) or max(times) <= min(others)
