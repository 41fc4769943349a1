"""Rows of a batch that name experts of different kinds answer as each row does alone."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pidep.adapters.bank import attached_bank, bank_groups, bank_layout
from pidep.adapters.bank_rows import BankRows, bank_rows
from pidep.adapters.kinds import KINDS
from pidep.adapters.mixture import Mixture, attached, find_sites, fresh
from pidep.errors import ExpertError
from pidep.experts.bank import pack
from pidep.experts.folder import Expert
from pidep.experts.kind import Tensors
from tests.adapters.zoo import FITS, ZOO

ENCODERS = [name for name, one in ZOO.items() if one.family == "encoder"]
SIZE = 4
OUTSIDE = {"DeBERTa-v2": {"lora", "bitfit"}}
"""Kinds whose sites also read relative positions there, so rows cannot be told apart."""


def expert(kind: str, sites: Mapping[str, Tensors]) -> Expert:
    return Expert(
        name=kind,
        backbone_digest="sha256:tiny",
        sites=dict(sites),
        scaling=1.5 if kind == "lora" else 1.0,
        labels=("a",),
        label_texts=("a",),
        label_embeddings=np.ones((1, 2), np.float32),
        logit_scale=1.0,
        max_length=8,
        kind=kind,
    )


def drawn(model: nn.Module, kind: str, sites: list[str], *, size: int, seed: int) -> Expert:
    rng = np.random.default_rng(seed)
    return expert(
        kind,
        {
            site: {
                name: rng.normal(0, 0.3, value.shape).astype(np.float32)
                for name, value in tensors.items()
            }
            for site, tensors in fresh(model, sites, kind=kind, rank=size).items()
        },
    )


def experts_of(model: nn.Module, kind: str) -> list[Expert]:
    """One of full size everywhere, and a smaller one at some of the sites."""
    sites = find_sites(model, kind=kind)
    some = sites[1::2] or sites
    large = 1 if kind == "bitfit" else SIZE
    small = 1 if kind == "bitfit" else SIZE - 2
    found = [
        drawn(model, kind, sites, size=large, seed=0),
        drawn(model, kind, some, size=small, seed=1),
        # A short prefix everywhere: it moves the text by fewer positions than a long one.
        drawn(model, kind, sites, size=small, seed=2),
    ]
    if kind == "prefix":
        # A mixture on outputs: two parts side by side, with a bias for each virtual token.
        halves = [drawn(model, kind, sites, size=small, seed=seed).sites for seed in (3, 4)]
        mixed = Mixture(halves, [1.0, 1.0], kind=kind, on_outputs=True)
        found.append(expert(kind, mixed.folded()))
    return found


def together(
    name: str, model: nn.Module, experts: list[Expert], kinds: list[str]
) -> tuple[Tensor, dict[str, Tensor], list[int]]:
    """Every text with every expert and with none, in one batch."""
    architecture = ZOO[name]
    groups = [
        group
        for kind in kinds
        for group in bank_groups(
            model,
            find_sites(model, kind=kind),
            kind=kind,
            size=1 if kind == "bitfit" else SIZE,
        )
    ]
    factors = [torch.from_numpy(pack(group, [None, *experts])) for group in groups]
    texts = architecture.inputs()
    count = len(experts) + 1
    slots = torch.arange(count).repeat(len(texts["input_ids"]))[:, None]
    inputs = {key: value.repeat_interleave(count, 0) for key, value in texts.items()}
    layout = bank_layout(model, groups)
    weights = torch.ones(len(slots), 1, len(layout.sites))
    rows = BankRows(layout, factors, slots, weights, like=inputs["input_ids"])
    with attached_bank(model, groups), bank_rows(rows):
        return architecture.read(model(**inputs)), inputs, slots[:, 0].tolist()


@pytest.mark.parametrize("name", ENCODERS)
@torch.no_grad()
def test_rows_of_all_kinds_equal_rows_alone(name: str) -> None:
    model = ZOO[name].build()
    kinds = [
        kind
        for kind in KINDS
        if isinstance(FITS[name][kind], int) and kind not in OUTSIDE.get(name, set())
    ]
    experts = [one for kind in kinds for one in experts_of(model, kind)]
    found, inputs, index = together(name, model, experts, kinds)
    for row, chosen in enumerate(index):
        length = int(inputs["attention_mask"][row].sum())
        alone = {key: value[row : row + 1, :length] for key, value in inputs.items()}
        mixture = None if chosen == 0 else Mixture.of([experts[chosen - 1]])
        with attached(model, mixture):
            expected = ZOO[name].read(model(**alone))
        torch.testing.assert_close(
            found[row : row + 1, :length],
            expected,
            rtol=1e-4,
            atol=1e-5,
            msg=lambda text, chosen=chosen: f"expert {chosen - 1}: {text}",
        )


@pytest.mark.parametrize("name", ENCODERS[:1])
@torch.no_grad()
def test_the_model_is_left_as_it_was(name: str) -> None:
    model = ZOO[name].build()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    texts = ZOO[name].inputs()
    expected = ZOO[name].read(model(**texts))
    together(name, model, [one for kind in KINDS for one in experts_of(model, kind)], list(KINDS))
    assert model.state_dict().keys() == before.keys()
    assert torch.equal(ZOO[name].read(model(**texts)), expected)


def test_a_backbone_without_position_ids_is_refused() -> None:
    model = ZOO["OPT"].build()
    groups = bank_groups(model, find_sites(model, kind="prompt"), kind="prompt", size=2)
    with pytest.raises(ExpertError, match=r"takes no position ids.*form=merged"):
        with attached_bank(model, groups):
            pass


@pytest.mark.parametrize("kind", sorted(OUTSIDE["DeBERTa-v2"]))
def test_a_site_that_reads_more_than_rows_is_refused(kind: str) -> None:
    model = ZOO["DeBERTa-v2"].build()
    groups = bank_groups(model, find_sites(model, kind=kind), kind=kind, size=2)
    with pytest.raises(ExpertError, match=r"rows cannot be told apart there.*form=merged"):
        with attached_bank(model, groups):
            pass
