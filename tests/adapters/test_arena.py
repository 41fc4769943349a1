"""The arena: one pass for all sites, repeated after each change, never in a spent graph."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from pidep.adapters import arena as arena_module
from pidep.adapters.arena import Arena
from pidep.adapters.mixture import Mixture, attached
from tests.similarity.samples import random_expert

SHAPES = [{"up": (3, 5), "down": (700,)}, {"bias": (2,)}]


def arena_of(
    count: int, *, num_learned: int | None = None, seed: int = 0
) -> tuple[Arena, list[list[dict[str, np.ndarray]]]]:
    rng = np.random.default_rng(seed)
    experts = [
        [
            {name: rng.normal(size=shape).astype(np.float32) for name, shape in site.items()}
            for site in SHAPES
        ]
        for _ in range(count)
    ]
    logits = [
        nn.Parameter(torch.from_numpy(rng.normal(size=count).astype(np.float32))) for _ in SHAPES
    ]
    return Arena(experts, logits, num_learned=num_learned), experts


def mean(
    arena: Arena, experts: list[list[dict[str, np.ndarray]]], site: int, name: str
) -> torch.Tensor:
    alpha = torch.softmax(arena.alpha_logits[site].detach(), 0)
    return sum(
        weight * torch.from_numpy(expert[site][name])
        for weight, expert in zip(alpha, experts, strict=True)
    )


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("num_learned", [0, 1, None])
def test_every_site_is_its_own_mixture(count: int, num_learned: int | None) -> None:
    arena, experts = arena_of(count, num_learned=num_learned)
    for site, shapes in enumerate(SHAPES):
        found = arena.mixed(site)
        assert {name: tuple(value.shape) for name, value in found.items()} == shapes
        for name in shapes:
            torch.testing.assert_close(found[name], mean(arena, experts, site, name))
            stacked = torch.from_numpy(np.stack([expert[site][name] for expert in experts]))
            assert torch.equal(arena.stacked(site)[name], stacked)


def test_all_sites_are_interpolated_in_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    whole = arena_module.interpolate
    monkeypatch.setattr(
        arena_module, "interpolate", lambda *arguments: calls.append(1) or whole(*arguments)
    )
    arena, _ = arena_of(3)
    for _ in range(2):
        for site in range(len(SHAPES)):
            arena.mixed(site)
    assert len(calls) == 1


@pytest.mark.parametrize("changed", ["learned", "frozen", "alpha"])
def test_a_change_is_noticed_at_once(changed: str) -> None:
    arena, _ = arena_of(3, num_learned=1)
    before = arena.mixed(0)["down"].detach().clone()
    with torch.no_grad():
        {"learned": arena.learned, "frozen": arena.frozen, "alpha": arena.alpha_logits[0]}[changed][
            ..., 0
        ] += 1
    assert not torch.equal(arena.mixed(0)["down"], before)


def test_replaced_memory_of_a_parameter_is_noticed() -> None:
    arena, _ = arena_of(3, num_learned=1)
    before = arena.mixed(0)["up"].detach().clone()
    arena.learned.data = arena.learned.data + 1  # as Module.to does
    assert not torch.equal(arena.mixed(0)["up"], before)


def test_what_was_made_without_gradients_is_not_used_with_them() -> None:
    arena, _ = arena_of(2)
    with torch.inference_mode():
        assert not arena.mixed(0)["up"].requires_grad
    with torch.no_grad():
        assert not arena.mixed(0)["up"].requires_grad
    loss = arena.mixed(0)["up"].sum() + arena.mixed(1)["bias"].sum()
    loss.backward()
    assert arena.learned.grad is not None
    # backward has freed the first graph, so this needs a new one
    arena.mixed(0)["up"].sum().backward()


def test_frozen_experts_are_given_no_gradient_and_alpha_is() -> None:
    arena, _ = arena_of(3, num_learned=1)
    (arena.mixed(0)["up"].square().sum() + arena.mixed(1)["bias"].sum()).backward()
    assert arena.learned.grad is not None
    assert arena.learned.grad.shape == (1, arena.learned.shape[1])
    assert arena.frozen.grad is None
    assert not arena.frozen.requires_grad
    assert all(
        logits.grad is not None and logits.grad.abs().sum() > 0 for logits in arena.alpha_logits
    )


def test_gradients_are_those_of_the_plain_expression() -> None:
    arena, _experts = arena_of(3, num_learned=2)
    weights = {name: torch.randn(shape) for site in SHAPES for name, shape in site.items()}

    def loss(parts: list[dict[str, torch.Tensor]]) -> torch.Tensor:
        return sum((part[name].sin() * weights[name]).sum() for part in parts for name in part)

    loss([arena.mixed(site) for site in range(len(SHAPES))]).backward()
    rows = arena.rows().detach().requires_grad_()
    logits = [value.detach().clone().requires_grad_() for value in arena.alpha_logits]
    parts = [
        {
            name: torch.tensordot(torch.softmax(logits[site], 0), value, 1)
            for name, value in arena.unpacked(rows, site).items()
        }
        for site in range(len(SHAPES))
    ]
    loss(parts).backward()
    torch.testing.assert_close(arena.learned.grad, rows.grad[:2])
    for found, want in zip(arena.alpha_logits, logits, strict=True):
        torch.testing.assert_close(found.grad, want.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["adapter", "prefix", "bitfit"])
def test_two_forward_passes_can_be_differentiated_one_after_the_other(tiny, kind: str) -> None:
    mixture = Mixture.of([random_expert(tiny, kind=kind, seed=seed) for seed in range(2)])
    with attached(tiny.model, mixture):
        losses = [
            tiny.embed([text], max_length=8).square().sum() + tiny.embed([text], max_length=8)[0, 0]
            for text in ("good", "bad film")
        ]
        for loss in losses:
            loss.backward()
    assert mixture.arena is not None
    assert mixture.arena.kept is None
    assert mixture.arena.learned.grad is not None


@pytest.mark.parametrize("kind", ["lora", "adapter", "prefix", "bitfit"])
def test_the_first_expert_alone_learns_the_same_as_with_the_others_masked(tiny, kind: str) -> None:
    experts = [random_expert(tiny, kind=kind, seed=seed) for seed in range(3)]
    gradients = []
    for num_learned in (1, None):
        mixture = Mixture.of(experts, num_learned=num_learned)
        with attached(tiny.model, mixture):
            tiny.embed(["a good film"], max_length=8)[0, 0].backward()
        own = [
            _first(kind, parameter.grad, tensors)
            for parameter, tensors in zip(
                mixture.expert_parameters(), _sizes(mixture, experts), strict=True
            )
        ]
        gradients.append([*own, *(logits.grad for logits in mixture.alpha_parameters())])
    for alone, among in zip(*gradients, strict=True):
        torch.testing.assert_close(alone, among)


def _sizes(mixture: Mixture, experts: list) -> list[tuple[int, int]]:
    """Axis and length of the first expert's share of each parameter."""
    if mixture.arena is not None:
        return [(0, 1)]
    rank = len(next(iter(experts[0].sites.values()))["lora_A"])
    return [(0, rank), (1, rank)] * len(experts[0].sites)


def _first(kind: str, gradient: torch.Tensor, share: tuple[int, int]) -> torch.Tensor:
    return gradient.narrow(share[0], 0, share[1])
