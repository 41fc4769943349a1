"""Where α starts: what the target's own rows say of helpers that have never seen them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from pidep.errors import ExpertError
from pidep.experts.mixture import Mixture
from pidep.tuning.guard import trust
from pidep.tuning.stacking import Stack, stacking_weights
from pidep.tuning.trainer import predict_logits
from tests.tuning.conftest import ROWS

CASES = st.tuples(st.integers(1, 5), st.integers(2, 20), st.integers(2, 4), st.integers(0, 99))


def drawn(count: int, rows: int, classes: int, seed: int) -> tuple[Tensor, Tensor]:
    """Logits `[K, N, C]`, the later the expert the better, and labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (rows,), generator=generator)
    noise = 2 * torch.randn(count, rows, classes, generator=generator)
    return noise + torch.arange(count)[:, None, None] * one_hot(labels, classes), labels


def objective(alpha: Tensor, logits: Tensor, labels: Tensor) -> float:
    """At the best temperature on a grid: what is to be least."""

    def at(log_temperature: float) -> float:
        mixed = torch.tensordot(alpha.double(), logits.double(), 1) / np.exp(log_temperature)
        return trust(len(labels)) * float(cross_entropy(mixed, labels, reduction="sum")) + (log_temperature - 0.5) ** 2

    return min(at(value) for value in np.linspace(-4, 5, 181)) - 2.0 * float(alpha.double().log().mean())


@given(CASES)
@settings(max_examples=25, deadline=None)
def test_no_other_weights_fit_better(case: tuple[int, int, int, int]) -> None:
    logits, labels = drawn(*case)
    found = stacking_weights(logits, labels)
    assert found.shape == (len(logits),)
    assert float(found.sum()) == pytest.approx(1, abs=1e-5)
    least, rng = objective(found, logits, labels), np.random.default_rng(case[3])
    for other in (rng.dirichlet(np.ones(len(logits))) for _ in range(20)):
        assert least <= objective(torch.from_numpy(other).clamp(min=1e-9), logits, labels) + 1e-2


@given(CASES, st.randoms())
@settings(max_examples=25, deadline=None)
def test_the_order_of_experts_is_nothing(case: tuple[int, int, int, int], shuffler: Any) -> None:
    logits, labels = drawn(*case)
    order = shuffler.sample(range(len(logits)), len(logits))
    np.testing.assert_allclose(stacking_weights(logits[order], labels), stacking_weights(logits, labels)[order], atol=1e-3)


def test_experts_alike_are_weighted_alike_and_a_better_one_more_the_more_rows_say_so() -> None:
    logits, labels = drawn(1, 12, 2, seed=0)
    np.testing.assert_allclose(stacking_weights(logits.expand(4, -1, -1), labels), 0.25, atol=1e-4)
    weights = []
    for rows in (4, 16, 64):
        logits, labels = drawn(2, rows, 2, seed=1)
        logits[1] = 0.3 * logits[1] + 3 * one_hot(labels, 2)
        weights.append(float(stacking_weights(logits, labels)[1]))
    assert 0.5 < weights[0] < weights[1] < weights[2] < 1


def test_places_left_over_where_rows_have_candidates_of_their_own_are_no_matter() -> None:
    logits, labels = drawn(3, 12, 2, seed=0)
    wider = torch.nn.functional.pad(logits, (0, 1), value=-torch.inf)
    stack = Stack(wider.clamp(min=-1e4), labels)
    np.testing.assert_allclose(stack.weights(), stacking_weights(logits, labels), atol=1e-4)


def test_a_stack_is_the_backbone_and_every_helper_alone_on_rows_of_their_own(parts: Any) -> None:
    scorer, _, helpers = parts
    stack = Stack.of(scorer, helpers, ROWS)
    for found, mixture in zip(stack.logits, [None, *(Mixture.of([helper]) for helper in helpers)], strict=True):
        torch.testing.assert_close(found.float(), predict_logits(scorer, ROWS.rows, mixture))
    assert stack.weights().tolist() == stacking_weights(stack.logits, stack.labels).tolist()


def test_a_helper_that_answers_nothing_is_named(parts: Any) -> None:
    scorer, _, (one, two) = parts
    broken = {site: {name: np.full_like(value, np.nan) for name, value in tensors.items()} for site, tensors in two.sites.items()}
    with pytest.raises(ExpertError, match=r"expert 'two': answers the training rows with NaN or Inf; train it again, or leave it out"):
        Stack.of(scorer, [one, replace(two, sites=broken)], ROWS)
