"""A row that names several experts answers as their mixture does, folded into one expert."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pidep.adapters.bank import attached_bank, bank_groups, bank_layout
from pidep.adapters.bank_rows import BankRows, bank_rows
from pidep.adapters.kinds import KINDS
from pidep.adapters.mixture import Mixture, attached, find_sites
from pidep.experts.bank import pack
from pidep.experts.folder import Expert
from pidep.experts.mixed import MixedExpert
from tests.adapters.test_bank import drawn, expert
from tests.adapters.zoo import FITS, ZOO

NAMES = ("BERT", "ModernBERT", "MPNet")
"""Absolute, rotary and relative positions; layers with and without biases."""
MODELS = {name: ZOO[name].build() for name in NAMES}
FITTING = [
    (name, kind) for name in NAMES for kind in sorted(KINDS) if isinstance(FITS[name][kind], int)
]
SIZE = 4


def mixed(
    model: nn.Module, kind: str, *, sizes: Sequence[int], seed: int = 0
) -> tuple[MixedExpert, Expert]:
    """A mixture of drawn experts with an α of its own at each site, and the same folded."""
    sites = find_sites(model, kind=kind)
    parts = [drawn(model, kind, sites, size=size, seed=seed + at) for at, size in enumerate(sizes)]
    mixture = Mixture.of(parts, on_outputs=True)
    torch.manual_seed(seed)
    with torch.no_grad():
        for logits in mixture.alpha_parameters():
            logits.normal_()
    by_reference = MixedExpert(expert(kind, {}), tuple(parts), mixture.alphas())
    return by_reference, expert_of_scale_one(kind, mixture)


def expert_of_scale_one(kind: str, mixture: Mixture) -> Expert:
    return replace(expert(kind, mixture.folded()), scaling=1.0)


def served(
    model: nn.Module,
    name: str,
    kind: str,
    experts: Sequence[Expert],
    slots: Tensor,
    weights: Tensor,
) -> Tensor:
    """The model's answers to the zoo's three texts, with a bank of these experts."""
    groups = bank_groups(model, find_sites(model, kind=kind), kind=kind, size=SIZE)
    factors = [torch.from_numpy(pack(group, [None, *experts])) for group in groups]
    inputs = ZOO[name].inputs()
    layout = bank_layout(model, groups)
    rows = BankRows(layout, factors, slots, weights, like=inputs["input_ids"])
    with attached_bank(model, groups), bank_rows(rows):
        return ZOO[name].read(model(**inputs))


def weights_at(model: nn.Module, kind: str, alphas: dict[str, Sequence[float]]) -> Tensor:
    """α of a mixture as the bank's `weights` [K, S]."""
    layout = bank_layout(
        model, bank_groups(model, find_sites(model, kind=kind), kind=kind, size=SIZE)
    )
    return torch.tensor([list(alphas[site]) for site in layout.sites]).T


def unpadded(found: Tensor) -> Tensor:
    return torch.cat([found[row, :length] for row, length in enumerate((7, 5, 3))])


@pytest.mark.parametrize(("name", "kind"), FITTING)
@given(
    sizes=st.lists(st.integers(1, SIZE), min_size=2, max_size=3),
    seed=st.integers(0, 1000),
    one=st.booleans(),
)
@settings(max_examples=8)
@torch.no_grad()
def test_a_mixture_by_reference_is_the_folded_one(
    name: str, kind: str, sizes: list[int], seed: int, one: bool
) -> None:
    model = MODELS[name]
    # Prompts are averaged token by token, and prefixes take the same positions.
    sizes = [
        1 if kind == "bitfit" else sizes[0] if kind in ("prompt", "prefix") else size
        for size in sizes
    ]
    by_reference, folded = mixed(model, kind, sizes=sizes, seed=seed)
    parts = by_reference.parts
    # Slot 0 of weight 0 stands last where rows have different numbers of parts.
    slots = torch.tensor([[*range(1, len(parts) + 1), 0]])
    weights = weights_at(model, kind, dict(by_reference.alphas))
    weights = torch.cat([weights, torch.zeros(1, weights.shape[1])])[None]
    order = np.random.default_rng(seed).permutation(len(parts) + 1)
    slots, weights = slots[:, order], weights[:, order]
    if not one:
        slots, weights = slots.expand(3, -1), weights.expand(3, -1, -1)
    found = served(model, name, kind, parts, slots, weights)
    with attached(model, Mixture.of([folded])):
        expected = ZOO[name].read(model(**ZOO[name].inputs()))
    torch.testing.assert_close(unpadded(found), unpadded(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", sorted(KINDS))
@torch.no_grad()
def test_one_row_of_slots_stands_for_all_rows(kind: str) -> None:
    model = MODELS["BERT"]
    one = drawn(
        model, kind, find_sites(model, kind=kind), size=1 if kind == "bitfit" else 3, seed=5
    )
    columns = weights_at(model, kind, {site: [1.0] for site in one.sites}).shape[1]
    found = [
        served(
            model,
            "BERT",
            kind,
            [one],
            torch.ones(rows, 1, dtype=torch.int64),
            torch.ones(rows, 1, columns),
        )
        for rows in (1, 3)
    ]
    assert torch.equal(*found)
    bare = ZOO["BERT"].read(model(**ZOO["BERT"].inputs()))
    assert (unpadded(found[0]) - unpadded(bare)).abs().max() > 1e-3


def test_query_key_and_value_share_a_product() -> None:
    model = MODELS["BERT"]
    layout = bank_layout(model, bank_groups(model, find_sites(model, kind="lora"), size=SIZE))
    packs = {pack.sites for (_, factor, _), pack in layout.packs.items() if factor == "A"}
    assert {len(pack) for pack in packs} == {1, 3}
    three = next(pack for pack in packs if len(pack) == 3)
    assert [site.rpartition(".")[2] for site in three] == ["query", "key", "value"]
