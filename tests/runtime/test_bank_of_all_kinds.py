"""Experts and mixtures of every kind in one exported graph, over texts and images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pidep.adapters.kinds import KINDS
from pidep.adapters.mixture import Mixture, attached
from pidep.experts.bank import positions_before
from pidep.experts.folder import Expert
from pidep.experts.mixed import MixedExpert
from pidep.inputs.row import Input, Row
from pidep.runtime import Answer, Bank
from pidep.runtime.fit import groups_of
from tests.adapters.test_bank import experts_of
from tests.adapters.test_bank_mixtures import mixed
from tests.conftest import make_expert, png, tiny_mini
from tests.runtime.exported import export_bank_folder

pytestmark = pytest.mark.slow  # a graph is compiled

ROWS: list[Input] = [
    "the film was good",
    Row("", png(0)),
    Row("bad film", png(1)),
    # Longer than a prompt leaves room for: the text is cut, and its row is answered.
    " ".join(["good film"] * 30),
]
SIZES = {"bitfit": (1, 1, 1), "prompt": (3, 3, 3), "prefix": (2, 2), "lora": (1, 4, 2)}


class Served:
    """A bank, what it serves, and for each name the expert that PyTorch runs instead."""

    def __init__(self, folder: Path, mini: Any) -> None:
        self.mini, self.bank = mini, Bank(folder)
        head = replace(make_expert(mini), sites={}, max_length=32)
        self.experts: dict[str, Expert] = {}
        given: dict[str, Expert | MixedExpert] = {}
        for kind in KINDS:
            for number, one in enumerate(experts_of(mini.model, kind)):
                expert = replace(head, sites=one.sites, kind=kind, scaling=one.scaling)
                given[f"{kind}-{number}"] = self.experts[f"{kind}-{number}"] = expert
            by_reference, folded = mixed(mini.model, kind, sizes=SIZES.get(kind, (4, 2)), seed=9)
            parts = tuple(
                replace(head, sites=part.sites, kind=kind, scaling=part.scaling)
                for part in by_reference.parts
            )
            whole = replace(head, kind=kind, scaling=1.0)
            given[f"{kind}-mixture"] = MixedExpert(whole, parts, by_reference.alphas)
            self.experts[f"{kind}-mixture"] = replace(whole, sites=folded.sites)
        self.given, self.residents = given, self.bank.build(given)

    def answers(self, rows: list[Input], names: list[str]) -> list[Answer]:
        found = self.bank.run(self.residents, rows, names)
        assert all(isinstance(answer, Answer) for answer in found), found
        return found  # type: ignore[return-value]

    def expected(self, row: Input, name: str) -> Any:
        expert = self.experts.get(name)
        taken = 0 if expert is None else positions_before(expert, groups_of(self.bank.record))
        with attached(self.mini.model, None if expert is None else Mixture.of([expert])):
            return self.mini.encode([row], max_length=32 - taken)[0]


@pytest.fixture(scope="module")
def served(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Served:
    from pidep.backbones.load import load_backbone

    mini = tiny_mini(load_backbone(str(tiny_folder)))
    folder = export_bank_folder(mini, tmp_path_factory.mktemp("repo"), kinds=list(KINDS))
    return Served(folder, mini)


def test_experts_and_mixtures_of_every_kind_share_a_batch(served: Served) -> None:
    names = ["@backbone", *served.given]
    rows = [row for row in ROWS for _ in names]
    found = served.answers(rows, names * len(ROWS))
    for row, name, answer in zip(rows, names * len(ROWS), found, strict=True):
        np.testing.assert_allclose(
            answer.embedding, served.expected(row, name), atol=5e-6, rtol=0, err_msg=name
        )


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_of_one_name_equals_a_mixed_batch(served: Served, kind: str) -> None:
    for name in (f"{kind}-0", f"{kind}-mixture"):
        alone = served.answers(ROWS, [name] * len(ROWS))
        mixed = served.answers([*ROWS, "good"], [name] * len(ROWS) + ["@backbone"])
        for one, other in zip(alone, mixed, strict=False):
            np.testing.assert_allclose(one.embedding, other.embedding, atol=5e-6, rtol=0)
            assert one.digest == other.digest == served.given[name].digest


@given(
    st.lists(
        st.tuples(st.integers(0, len(ROWS) - 1), st.integers(0, 10**6)), min_size=1, max_size=8
    )
)
@settings(max_examples=15)
def test_any_rows_of_any_experts_answer_as_each_does_alone(
    served: Served, asked: list[tuple[int, int]]
) -> None:
    known = ["@backbone", *served.given]
    rows = [ROWS[row] for row, _ in asked]
    names = [known[number % len(known)] for _, number in asked]
    found = served.answers(rows, names)
    for row, name, answer in zip(rows, names, found, strict=True):
        (alone,) = served.answers([row], [name])
        np.testing.assert_allclose(answer.embedding, alone.embedding, atol=5e-6, rtol=0)


def test_parts_have_one_slot_whoever_names_them(served: Served) -> None:
    mixture = served.given["lora-mixture"]
    assert isinstance(mixture, MixedExpert)
    turned = MixedExpert(
        mixture.head,
        mixture.parts[::-1],
        {site: shares[::-1] for site, shares in mixture.alphas.items()},
    )
    used = served.bank.arena.used
    first = served.bank.build({"b": mixture, "part": mixture.parts[1]})
    slots = first.by_name["b"].slots
    assert first.by_name["part"].slots == slots[1:2]
    second = served.bank.build({"b": mixture, "c": turned})
    assert second.by_name["c"].slots == slots[::-1]
    # The fixture serves this mixture, too.
    assert served.bank.arena.used == used
    one, other = served.bank.run(second, ROWS[:1] * 2, ["b", "c"])
    assert isinstance(one, Answer)
    assert isinstance(other, Answer)
    np.testing.assert_allclose(one.embedding, other.embedding, atol=5e-6, rtol=0)
    assert one.digest != other.digest


def test_a_bank_without_experts_answers_by_the_bare_backbone(served: Served) -> None:
    (answer,) = served.bank.run(served.bank.build({}), ROWS[:1], ["@backbone"])
    assert isinstance(answer, Answer)
    np.testing.assert_allclose(answer.embedding, served.expected(ROWS[0], "@backbone"), atol=5e-6)
