"""Every kind on every architecture of the zoo.

Sites are found, experts attached, trained, mixed, given row by row, saved, and removed without a
trace.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pidep.adapters.kinds import KINDS
from pidep.adapters.mixture import Mixture
from pidep.adapters.places import find_sites, fresh, peft_can
from pidep.errors import ExpertError
from pidep.experts.folder import Expert, read_expert, write_expert
from tests.adapters.small_experts import SIZE, make, mixture_of, run
from tests.adapters.zoo import BATCH, FITS, LENGTH, ZOO, Architecture

CASES = [(name, kind) for name in ZOO for kind in KINDS if isinstance(FITS[name][kind], int)]
REFUSED = [(name, kind) for name in ZOO for kind in KINDS if isinstance(FITS[name][kind], str)]
MIXED = [(name, kind, False) for name, kind in CASES] + [
    (name, kind, True) for name, kind in CASES if KINDS[kind].mixes_outputs
]
TEXT_CASES = [(name, kind) for name, kind in CASES if ZOO[name].family in ("encoder", "decoder")]
KEYS = re.compile(r"(k_lin|k_proj|\.k|\.key)\.bias$")
"""Biases of attention keys, which have no gradient.

A key bias shifts all scores of a query by the same number, and a softmax ignores that. Only rotary
and relative positions give a key bias a gradient.
"""
SHARED = ("*value_proj", "*dense", "embeddings.LayerNorm")
"""DeBERTa's sites that read texts only. query_proj, key_proj and encoder.LayerNorm also read
relative positions.
"""


def gradients(mixture: Mixture) -> Iterator[tuple[str, Tensor]]:
    """Names and gradients of all learned tensors, kept by the sites or by an arena."""
    for number, (name, site) in enumerate(mixture.by_name()):
        if mixture.arena is None:
            found = {
                tensor: parameter.grad
                for tensor, parameter in site.named_parameters()
                if tensor != "alpha_logits"
            }
        else:
            assert mixture.arena.learned.grad is not None
            found = dict(mixture.arena.unpacked(mixture.arena.learned.grad, number))
        for tensor, gradient in found.items():
            assert gradient is not None, f"{name}.{tensor} has no gradient"
            yield f"{name}.{tensor}", gradient


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_it_acts_and_learns(architecture: Architecture, model: nn.Module, kind: str) -> None:
    sites = find_sites(model, kind=kind)
    assert len(sites) == FITS[architecture.name][kind]
    with torch.no_grad():
        bare = run(architecture, model)
        untrained = run(
            architecture, model, mixture_of(fresh(model, sites, kind=kind, rank=SIZE), kind=kind)
        )
        moved = run(architecture, model, mixture_of(make(model, kind, seed=0), kind=kind))
    if kind in ("lora", "adapter", "bitfit"):
        assert torch.equal(untrained, bare)
    assert moved.shape == bare.shape
    assert ((moved - bare).flatten(1).abs().amax(1) > 1e-3).all()  # every row has moved
    mixture = mixture_of(make(model, kind, seed=0, scale=0.1), kind=kind)
    target = torch.randn(bare.shape, generator=torch.Generator().manual_seed(4))
    optimizer = torch.optim.Adam(mixture.expert_parameters(), lr=0.01)
    losses = []
    for _ in range(4):
        loss = (run(architecture, model, mixture) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    with torch.no_grad():
        assert torch.equal(run(architecture, model), bare)


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_every_tensor_has_a_gradient(
    architecture: Architecture, model: nn.Module, kind: str
) -> None:
    # In float32, a gradient of zero is 1e-10 on one processor and 0 on another. The deepest true
    # gradients are hardly larger. In float64 they are far apart: rounding errors stay below 1e-15
    # of the largest gradient.
    exact = copy.deepcopy(model).double()
    mixture = mixture_of(make(model, kind, seed=0, scale=0.1), kind=kind).double()
    inputs = {
        name: value.double() if value.is_floating_point() else value
        for name, value in architecture.inputs().items()
    }
    output = run(architecture, exact, mixture, **inputs)
    target = torch.randn(
        output.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64
    )
    (output - target).square().mean().backward()
    sizes = {name: gradient.abs().amax().item() for name, gradient in gradients(mixture)}
    assert len(sizes) == sum(len(tensors) for tensors in mixture.part(0).values())
    for name, size in sizes.items():
        if kind != "bitfit" or not KEYS.search(name):
            assert size > 1e-12 * max(sizes.values()), f"{name} has no gradient"


@pytest.mark.parametrize(("name", "kind", "on_outputs"), MIXED)
@torch.no_grad()
def test_a_mixture_selects_permutes_and_folds(
    architecture: Architecture, model: nn.Module, kind: str, on_outputs: bool
) -> None:
    experts = [make(model, kind, seed=seed) for seed in range(3)]
    mixture = mixture_of(*experts, kind=kind, on_outputs=on_outputs)
    for logits in mixture.alpha_parameters():
        logits.copy_(torch.tensor([-1e4, 0.0, -1e4]))
    alone = run(architecture, model, mixture_of(experts[1], kind=kind))
    torch.testing.assert_close(run(architecture, model, mixture), alone, atol=2e-5, rtol=1e-5)
    turned = mixture_of(experts[2], experts[0], experts[1], kind=kind, on_outputs=on_outputs)
    for (_, site), (_, other) in zip(mixture.by_name(), turned.by_name(), strict=True):
        site.alpha_logits.copy_(torch.tensor([0.3, -1.0, 0.7]))
        other.alpha_logits.copy_(torch.tensor([0.7, 0.3, -1.0]))
    mixed = run(architecture, model, mixture)
    assert not torch.allclose(mixed, alone, atol=1e-3)
    torch.testing.assert_close(run(architecture, model, turned), mixed, atol=2e-5, rtol=1e-5)
    folded = Mixture([mixture.folded()], [1.0], kind=kind)
    torch.testing.assert_close(run(architecture, model, folded), mixed, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize(("name", "kind"), CASES)
@torch.no_grad()
def test_each_row_can_have_its_own_expert(
    architecture: Architecture, model: nn.Module, kind: str
) -> None:
    patterns = (
        SHARED if architecture.name == "DeBERTa-v2" and kind in ("lora", "bitfit") else ("*",)
    )
    if kind == "lora" and patterns is SHARED:
        patterns = SHARED[:2]
    experts = [make(model, kind, seed=seed, patterns=patterns) for seed in range(3)]
    looped = torch.stack(
        [
            run(architecture, model, mixture_of(expert, kind=kind))[row]
            for row, expert in enumerate(experts)
        ]
    )
    mixture = mixture_of(experts[0], kind=kind)
    for name, site in mixture.by_name():
        site.rows = {
            tensor: torch.stack([torch.from_numpy(expert[name][tensor]) for expert in experts])
            for tensor in experts[0][name]
        }
    torch.testing.assert_close(run(architecture, model, mixture), looped, atol=2e-5, rtol=1e-5)
    for name, site in mixture.by_name():  # one expert for the whole batch
        site.rows = {
            tensor: torch.from_numpy(experts[1][name][tensor])[None] for tensor in experts[1][name]
        }
    shared = run(architecture, model, mixture_of(experts[1], kind=kind))
    torch.testing.assert_close(run(architecture, model, mixture), shared, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_save_then_load_is_the_identity(
    architecture: Architecture, model: nn.Module, kind: str, tmp_path: Path
) -> None:
    tensors = make(model, kind, seed=0)
    expert = Expert(
        name="e",
        backbone_digest="sha256:0",
        sites=tensors,
        scaling=1.5 if kind == "lora" else 1.0,
        labels=("a",),
        label_texts=("a",),
        label_embeddings=np.ones((1, 2), np.float32),
        logit_scale=20.0,
        max_length=8,
        kind=kind,
        peft=peft_can(model, list(tensors), kind=kind),
    )
    folder = write_expert(expert, tmp_path / "e")
    assert (folder / "adapter_config.json").is_file() == expert.peft
    again = read_expert(folder)
    assert again.digest == expert.digest
    assert again.sites.keys() == expert.sites.keys()
    for site in tensors:
        assert all(
            np.array_equal(again.sites[site][name], value) for name, value in tensors[site].items()
        )
    with torch.no_grad():
        assert torch.equal(
            run(architecture, model, Mixture.of([again])),
            run(architecture, model, mixture_of(tensors, kind=kind)),
        )


@pytest.mark.parametrize(("name", "kind"), REFUSED)
def test_where_it_does_not_fit_it_says_why(model: nn.Module, kind: str, name: str) -> None:
    with pytest.raises(
        ExpertError,
        match=(
            f"{kind} experts: {type(model).__name__} has no .*{FITS[name][kind]}.*; use another "
            "kind"
        ),
    ):
        find_sites(model, kind=kind)


@pytest.mark.parametrize(("name", "kind"), TEXT_CASES)
@torch.no_grad()
def test_padding_and_other_rows_do_not_matter(
    architecture: Architecture, model: nn.Module, kind: str
) -> None:
    mixture = mixture_of(make(model, kind, seed=0), kind=kind)
    inputs = architecture.inputs()
    together = run(architecture, model, mixture)
    for row, length in enumerate(inputs["attention_mask"].sum(1).tolist()):
        alone = run(
            architecture,
            model,
            mixture,
            **{name: value[row : row + 1, :length] for name, value in inputs.items()},
        )
        torch.testing.assert_close(together[row : row + 1, :length], alone, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "kind"), [case for case in TEXT_CASES if ZOO[case[0]].family == "decoder"]
)
@torch.no_grad()
def test_a_decoder_stays_causal(architecture: Architecture, model: nn.Module, kind: str) -> None:
    mixture = mixture_of(make(model, kind, seed=0), kind=kind)
    ids = architecture.inputs()["input_ids"]
    other = ids.clone()
    other[:, 4] = (other[:, 4] + 7) % 30 + 5
    mask = torch.ones_like(ids)
    before, after = (
        run(architecture, model, mixture, input_ids=given, attention_mask=mask)
        for given in (ids, other)
    )
    torch.testing.assert_close(before[:, :4], after[:, :4], atol=2e-5, rtol=1e-4)
    assert not torch.allclose(before[:, 4], after[:, 4], atol=1e-3)


@pytest.mark.parametrize("name", ["BERT", "DistilBERT", "ModernBERT", "GPT-2", "Llama"])
@pytest.mark.parametrize("kind", ["prefix", "prompt"])
@torch.no_grad()
def test_positions_and_types_that_are_given_count_from_the_text(
    architecture: Architecture, model: nn.Module, kind: str
) -> None:
    mixture = mixture_of(make(model, kind, seed=0), kind=kind)
    given = {"position_ids": torch.arange(LENGTH).expand(BATCH, -1)}
    if architecture.name == "BERT":
        given["token_type_ids"] = torch.zeros(BATCH, LENGTH, dtype=torch.long)
    torch.testing.assert_close(
        run(architecture, model, mixture, **given),
        run(architecture, model, mixture),
        atol=2e-5,
        rtol=1e-4,
    )


@pytest.mark.parametrize("name", ["DeBERTa-v2"])
@pytest.mark.parametrize("kind", ["lora", "bitfit"])
def test_rows_that_cannot_be_told_apart_are_refused(
    architecture: Architecture, model: nn.Module, kind: str
) -> None:
    mixture = mixture_of(make(model, kind, seed=0), kind=kind)
    for _, site in mixture.by_name():
        site.rows = {
            tensor: torch.from_numpy(value).expand(3, *value.shape)
            for tensor, value in site.part(0).items()
        }
    with pytest.raises(
        ExpertError,
        match=r"site 'encoder\..*': samples cannot be told apart .* choose other `sites`",
    ):
        run(architecture, model, mixture)


@pytest.mark.parametrize("name", ["BERT"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_of_alpha_in_float64(architecture: Architecture, kind: str) -> None:
    model = architecture.build().double()
    mixture = mixture_of(*(make(model, kind, seed=seed) for seed in range(3)), kind=kind).double()

    def mixed(logits: Tensor) -> Tensor:
        for _, site in mixture.by_name():
            site.alpha = lambda: torch.softmax(logits, 0)
        return run(architecture, model, mixture)[:, 0, :3]

    assert torch.autograd.gradcheck(
        mixed, (torch.tensor([0.3, -1.0, 0.7], dtype=torch.float64, requires_grad=True),)
    )


@pytest.mark.parametrize("name", ["BERT"])
@given(
    order=st.permutations(range(4)),
    logits=st.lists(st.floats(-4, 4), min_size=4, max_size=4),
    kind=st.sampled_from(sorted(KINDS)),
)
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@torch.no_grad()
def test_the_order_of_experts_does_not_matter(
    architecture: Architecture, model: nn.Module, kind: str, order: list[int], logits: list[float]
) -> None:
    experts = [make(model, kind, seed=seed) for seed in range(4)]
    outputs = []
    for chosen in (list(range(4)), order):
        mixture = mixture_of(*(experts[index] for index in chosen), kind=kind)
        for parameter in mixture.alpha_parameters():
            parameter.copy_(torch.tensor([logits[index] for index in chosen]))
        outputs.append(run(architecture, model, mixture))
    torch.testing.assert_close(*outputs, atol=2e-5, rtol=1e-5)
