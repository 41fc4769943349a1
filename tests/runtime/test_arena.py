"""Slots of the arena: written while nobody reads them, shared by digest, free once left."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pidep.errors import ExpertError
from pidep.experts.bank import BankGroup, pack
from pidep.experts.mixed import MixedExpert, Served, parts_of
from pidep.runtime import Answer, Bank, Residents
from pidep.runtime.arena import Arena
from tests.serving.experts import small_expert
from tests.serving.small_bank import write_small_bank

GROUPS = tuple(
    BankGroup(
        input=f"lora_{one}_4", factor=one.upper(), width=4, sites=("layer.0",), kind="lora", size=4
    )
    for one in "ab"
)
EXPERTS = [small_expert(name=f"e{seed}", seed=seed) for seed in range(6)]


def arena() -> Arena:
    return Arena(GROUPS, dtypes={group.input: np.float32 for group in GROUPS})


@pytest.fixture
def bank(tmp_path: Path) -> Bank:
    return Bank(write_small_bank(tmp_path / "repo"), threads=1)


def held(residents: Residents, name: str) -> list[list[np.ndarray]]:
    """The tensors in the slots of a name."""
    slots = residents.by_name[name].slots
    return [
        [residents.values[group.input].numpy()[slot.number] for slot in slots] for group in GROUPS
    ]


def packed(served: Served) -> list[list[np.ndarray]]:
    return [list(pack(group, parts_of(served))) for group in GROUPS]


def mixture(first: int, second: int) -> MixedExpert:
    head = replace(EXPERTS[first], name="mixture", sites={}, scaling=1.0)
    return MixedExpert(head, (EXPERTS[first], EXPERTS[second]), {"layer.0": (0.25, 0.75)})


SERVED = st.one_of(
    st.sampled_from(EXPERTS),
    st.builds(mixture, st.integers(0, 5), st.integers(0, 5)),
)
STATE = st.dictionaries(st.sampled_from("abcdefghijklmnop"), SERVED, max_size=16)


@given(states=st.lists(st.tuples(STATE, st.booleans()), min_size=1, max_size=6))
@settings(max_examples=40, deadline=None)
def test_every_batch_reads_the_experts_that_it_began_with(
    tmp_path_factory: pytest.TempPathFactory, states: list[tuple[Mapping[str, Served], bool]]
) -> None:
    bank = Bank(write_small_bank(tmp_path_factory.mktemp("repo")), threads=1)
    now, running = Residents(), []
    for state, is_read in states:
        now = bank.build(state)
        if is_read:
            running.append((now, state))
        for residents, expected in [*running, (now, state)]:
            assert residents.by_name.keys() == expected.keys()
            for name, served in expected.items():
                for found, wanted in zip(held(residents, name), packed(served), strict=True):
                    np.testing.assert_array_equal(found, wanted)
            for value in residents.values.values():
                assert not value.numpy()[0].any()  # the bare backbone
    digests = {
        part.digest
        for _, state in (*running, (now, states[-1][0]))
        for served in state.values()
        for part in parts_of(served)
    }
    assert bank.arena.used == len(digests)
    del running, now, residents
    assert bank.arena.used == 0


def test_it_grows_beside_running_batches() -> None:
    slots, given = arena(), [small_expert(seed=seed) for seed in range(40)]
    first = slots.slot_of(given[0], "0")
    before = slots.values()
    others = [slots.slot_of(expert, str(number)) for number, expert in enumerate(given)]
    assert others[0] is first
    assert (slots.used, slots.capacity) == (40, 64)
    assert len({slot.number for slot in others}) == 40
    for values in (before, slots.values()):
        for group in GROUPS:
            expected = pack(group, given[:1])[0]
            np.testing.assert_array_equal(values[group.input].numpy()[first.number], expected)
    assert slots.bytes_per_slot == 2 * 4 * 4 * 4


def test_a_left_slot_is_used_again_and_holds_nothing_of_the_last_expert() -> None:
    slots = arena()
    number = slots.slot_of(small_expert(), "full").number
    narrow = small_expert(seed=1)
    narrow = replace(
        narrow,
        sites={
            "layer.0": {
                "lora_A": narrow.sites["layer.0"]["lora_A"][:1],
                "lora_B": narrow.sites["layer.0"]["lora_B"][:, :1],
            }
        },
    )
    slot = slots.slot_of(narrow, "narrow")
    assert slot.number == number
    for group in GROUPS:
        row = slots.values()[group.input].numpy()[number]
        np.testing.assert_array_equal(row, pack(group, [narrow])[0])


def test_an_expert_that_does_not_fit_takes_no_slot(bank: Bank) -> None:
    kept = bank.build({"a": EXPERTS[0]})
    large = small_expert(seed=1)
    large = replace(
        large,
        sites={
            "layer.0": {
                "lora_A": np.ones((9, 4), np.float32),
                "lora_B": np.ones((4, 9), np.float32),
            }
        },
    )
    with pytest.raises(ExpertError, match="rank 9"):
        bank.build({"a": EXPERTS[0], "b": large})
    assert bank.arena.used == len(kept.by_name)


def test_experts_churn_under_batches_and_every_answer_is_of_its_digest(bank: Bank) -> None:
    """The race: each answer equals what its digest answers in a quiet bank."""
    quiet = bank.build({expert.name: expert for expert in EXPERTS})
    expected: dict[str, np.ndarray] = {}
    for expert in EXPERTS:
        (answer,) = bank.run(quiet, ["good film"], [expert.name])
        assert isinstance(answer, Answer)
        expected[answer.digest] = answer.embedding
    del quiet
    now = [bank.build({"x": EXPERTS[0], "y": EXPERTS[1]})]
    over, wrong, seen = threading.Event(), [], set()

    def ask() -> None:
        while not over.is_set():
            residents = now[0]
            for answer in bank.run(residents, ["good film"] * 2, ["x", "y"]):
                assert isinstance(answer, Answer)
                seen.add(answer.digest)
                if not np.array_equal(answer.embedding, expected[answer.digest]):
                    wrong.append(answer.digest)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    pair = {"x": EXPERTS[0], "y": EXPERTS[1]}
    for turn in range(400):
        pair = {**pair, "xy"[turn % 2]: EXPERTS[turn % len(EXPERTS)]}
        now[0] = bank.build(pair)
    over.set()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(seen) > 2
    del threads, ask
    now.clear()
    assert bank.arena.used == 0
    # At most four batches held two experts each beside the two of the last swap.
    assert bank.arena.capacity <= 16
