"""Base points, what rows say there, and the estimates from it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from pidep.adapters.kinds import KINDS
from pidep.adapters.mixture import linear_at
from pidep.errors import ExpertError, UsageError
from pidep.similarity.estimators import (
    ESTIMATORS,
    Helper,
    Target,
    mean_point,
    point_facts,
    random_point,
)
from pidep.similarity.estimators.mixture_gradient import mixture_gradients_by_site
from pidep.similarity.estimators.point_fisher import point_fisher
from pidep.similarity.fisher import diagonal_fisher
from tests.similarity.estimators.samples import ROWS, made_pool
from tests.similarity.samples import random_expert
from tests.similarity.test_fisher import assert_close, gradients


@pytest.mark.parametrize("kind", KINDS)
def test_facts_are_the_mean_gradient_and_the_fisher_at_the_point(tiny: Any, kind: str) -> None:
    expert = random_expert(tiny, kind)
    point = random_point(tiny.model, list(expert.sites), kind=kind, rank=2, scaling=expert.scaling)
    there = point.under(expert)
    found = point_facts(tiny, point, expert, ROWS.rows, ROWS.labels, batch_size=2)
    assert found.num_rows == 5
    assert_close(dict(found.fisher), diagonal_fisher(tiny, there, ROWS.rows, ROWS.labels))
    singles = [
        gradients(tiny, there, text, label)
        for text, label in zip(ROWS.rows, ROWS.labels, strict=True)
    ]
    for name, mean in found.gradient.items():
        expected = np.mean([single[name] for single in singles], 0)
        np.testing.assert_allclose(mean, expected, atol=1e-5, err_msg=name)


def test_every_tensor_of_a_random_point_has_a_gradient(tiny: Any) -> None:
    """An untrained LoRA's A has none, because its B is zero."""
    expert = random_expert(tiny, "lora")
    point = random_point(tiny.model, list(expert.sites), rank=2)
    again = random_point(tiny.model, list(reversed(expert.sites)), rank=2)
    assert point.tensors().keys() == again.tensors().keys()
    assert all(
        np.array_equal(point.tensors()[name], again.tensors()[name]) for name in point.tensors()
    )
    found = point_facts(tiny, point, expert, ROWS.rows, ROWS.labels)
    assert all(array.any() for array in found.gradient.values())


def test_the_mean_point_is_the_mean_of_one_kind(tiny: Any) -> None:
    experts = [random_expert(tiny, "lora", seed=seed) for seed in (1, 2)]
    point = mean_point(experts)
    site = next(iter(point.sites))
    expected = (experts[0].sites[site]["lora_B"] + experts[1].sites[site]["lora_B"]) / 2
    np.testing.assert_allclose(point.sites[site]["lora_B"], expected, rtol=1e-6)
    with pytest.raises(ExpertError, match="mean of 2 experts: expected one kind"):
        mean_point([experts[0], replace(experts[1], scaling=9.0)])
    with pytest.raises(ExpertError, match="mean of 0 experts"):
        mean_point([])


def test_rows_and_labels_must_match(tiny: Any) -> None:
    expert = random_expert(tiny, "lora")
    point = mean_point([expert])
    with pytest.raises(UsageError, match="found 5 rows and 1 labels"):
        point_facts(tiny, point, expert, ROWS.rows, [0])
    with pytest.raises(UsageError, match="found 0 rows"):
        point_facts(tiny, point, expert, [], [])


def test_the_fisher_at_a_point_is_largest_for_the_same_rows(tiny: Any) -> None:
    target, helpers = made_pool(tiny)
    twin = {**helpers, "twin": replace(helpers["one"], at=target.at)}
    for name in ESTIMATORS:
        if name.startswith(("fisher at", "gradient cosine")) and "shrunk" not in name:
            found = ESTIMATORS[name](target, twin)
            assert max(found, key=lambda one: found[one]) == "twin", name
            assert found["twin"] == pytest.approx(1, abs=1e-4), name


def test_shrinkage_moves_few_rows_to_the_pools_mean(tiny: Any) -> None:
    target, helpers = made_pool(tiny)
    plain = point_fisher("mean")(target, helpers)
    assert point_fisher("mean", prior_rows=1e-9)(target, helpers) == pytest.approx(plain, abs=1e-5)
    total = point_fisher("mean", prior_rows=1e12)(target, helpers)
    assert list(total.values()) == pytest.approx([1.0] * 3)  # all are the mean
    some = point_fisher("mean", prior_rows=5.0)(target, helpers)
    assert all(plain[name] < some[name] < 1 for name in plain)


def loss_at(target: Target, expert: Any) -> float:
    return float(cross_entropy(target.logits(expert), torch.tensor(ROWS.labels)))


def test_the_taylor_expansion_predicts_a_small_step(tiny: Any) -> None:
    target, helpers = made_pool(tiny)
    point = target.at["mean"].point
    expert = helpers["one"].expert
    step = {
        site: {
            name: (array + 0.02 * (expert.sites[site][name] - array)).astype(np.float32)
            for name, array in tensors.items()
        }
        for site, tensors in point.sites.items()
    }
    near = {"near": Helper(replace(expert, sites=step))}
    there = replace(point.under(expert), label_embeddings=expert.label_embeddings)
    gained = loss_at(target, there) - loss_at(target, near["near"].expert)
    first = ESTIMATORS["first order at the mean point"](target, near)["near"]
    assert first == pytest.approx(gained, rel=0.2)
    second = ESTIMATORS["second order at the mean point"](target, near)["near"]
    assert 0 < first - second < abs(first)  # the penalty is of the second order


def test_first_order_at_the_backbone_is_the_inner_product_with_the_update(tiny: Any) -> None:
    target, helpers = made_pool(tiny)
    sites = list(helpers["one"].expert.sites)
    weights = [linear_at(tiny.model, site).weight for site in sites]
    for weight in weights:
        weight.requires_grad_(True)
    loss = cross_entropy(target.scorer.logits(ROWS.rows), torch.tensor(ROWS.labels))
    found = torch.autograd.grad(loss, weights, materialize_grads=True)
    for weight in weights:
        weight.requires_grad_(False)
    by_site = mixture_gradients_by_site(target, helpers, at_backbone=True, batch_size=2)
    for site, gradient in zip(sites, found, strict=True):
        inner = []
        for helper in helpers.values():
            lora = helper.expert.sites[site]
            update = helper.expert.scaling * lora["lora_B"] @ lora["lora_A"]
            inner.append(-float((gradient.numpy() * update).sum()))
        expected = np.array(inner) - np.mean(inner)
        np.testing.assert_allclose(by_site[site], expected, rtol=2e-2, atol=1e-4, err_msg=site)
    total = ESTIMATORS["first order at the backbone"](target, helpers)
    np.testing.assert_allclose(list(total.values()), sum(by_site.values()), rtol=1e-4)


def test_first_order_at_the_mixture_works_for_every_kind(tiny: Any) -> None:
    for kind in ("bitfit", "adapter"):
        target, helpers = made_pool(tiny, kind=kind)
        found = ESTIMATORS["first order at the mixture"](target, helpers)
        assert sum(found.values()) == pytest.approx(0, abs=1e-4)
        assert any(found.values())
        with pytest.raises(UsageError, match="first order at the backbone: needs LoRAs"):
            ESTIMATORS["first order at the backbone"](target, helpers)


def test_one_helper_has_nobody_to_be_compared_with(tiny: Any) -> None:
    target, helpers = made_pool(tiny)
    one = {"one": helpers["one"]}
    assert ESTIMATORS["first order at the mixture"](target, one) == {"one": 0.0}
