"""LEEP, NCE, LogME and the H-score against their definitions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import multivariate_normal

from pidep.similarity.estimators import ESTIMATORS, Target
from pidep.similarity.estimators.h_score import h_score
from pidep.similarity.estimators.helper_labels import helper_probabilities
from pidep.similarity.estimators.logme import log_evidence
from pidep.tasks.data import Split
from tests.similarity.estimators.samples import ROWS, made_pool


def test_leep_is_the_mean_log_likelihood_of_its_definition(tiny: Any) -> None:
    target, helpers = made_pool(tiny)
    helper = helpers["one"]
    soft, labels = helper_probabilities(target, helper), ROWS.labels
    assert soft.sum(1) == pytest.approx(np.ones(len(labels)))
    total = 0.0
    for row, label in enumerate(labels):
        likelihood = 0.0
        for z in range(2):
            both = sum(soft[i, z] for i in range(len(labels)) if labels[i] == label)
            likelihood += both / soft[:, z].sum() * soft[row, z]
        total += np.log(likelihood)
    assert ESTIMATORS["leep"](target, {"one": helper})["one"] == pytest.approx(total / len(labels))


def test_nce_is_minus_the_conditional_entropy(tiny: Any) -> None:
    target, helpers = made_pool(tiny)
    helper = helpers["one"]
    guess = helper_probabilities(target, helper).argmax(1)
    entropy = 0.0
    for z in set(guess):
        share = np.bincount([label for label, g in zip(ROWS.labels, guess, strict=True) if g == z])
        share = share[share > 0] / share.sum()
        entropy -= (guess == z).mean() * float((share * np.log(share)).sum())
    assert ESTIMATORS["nce"](target, {"one": helper})["one"] == pytest.approx(-entropy)


@pytest.mark.parametrize("name", ["leep", "nce"])
def test_a_helper_with_reversed_labels_is_as_good(tiny: Any, name: str) -> None:
    """Both ask what the helper's answers tell, not whether they are right."""
    target, helpers = made_pool(tiny)
    turned = Target(target.scorer, Split(ROWS.rows, [1 - label for label in ROWS.labels]))
    assert ESTIMATORS[name](turned, helpers) == pytest.approx(ESTIMATORS[name](target, helpers))


def test_scores_know_a_helper_that_answers_rightly(tiny: Any) -> None:
    target, helpers = made_pool(tiny)
    expert = helpers["one"].expert
    embedded = target.embeddings(expert).numpy()
    # Label embeddings that classify these rows, found by least squares.
    signs = np.array([-1.0, 1.0])[ROWS.labels]
    direction = np.linalg.lstsq(embedded.astype(np.float64), signs, rcond=None)[0]
    right = np.stack([-direction, direction]) / np.linalg.norm(direction)
    good = replace(
        helpers["one"], expert=replace(expert, label_embeddings=right.astype(np.float32))
    )
    for name in ("leep", "nce"):
        found = ESTIMATORS[name](target, {"good": good, "other": helpers["two"]})
        assert found["good"] > found["other"], name


@pytest.mark.parametrize("rows", [40, 6], ids=["many rows", "fewer rows than features"])
def test_logme_is_the_largest_evidence(rows: int) -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(rows, 8))
    outcome = (features @ rng.normal(size=8) + 0.5 * rng.normal(size=rows) > 0).astype(float)

    def minus_evidence(logs: np.ndarray) -> float:
        alpha, beta = np.exp(np.clip(logs, -12, 12))
        covariance = features @ features.T / alpha + np.eye(rows) / beta
        return -float(multivariate_normal(np.zeros(rows), covariance).logpdf(outcome)) / rows

    best = min(minimize(minus_evidence, [a, 1.0], method="Nelder-Mead").fun for a in (-1.0, 2.0))
    assert log_evidence(features, outcome) == pytest.approx(-best, abs=1e-3)


def test_logme_prefers_features_that_tell_the_label() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0.0, 1.0], 10)
    noise = rng.normal(size=(20, 50))
    told = np.hstack([noise[:, :49], labels[:, None] * 5])
    assert log_evidence(told, labels) > log_evidence(noise, labels)


def test_the_h_score_of_many_rows_is_its_definition() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 20000)
    features = rng.normal(size=(20000, 4)) + rng.normal(size=(3, 4))[labels]
    means = np.stack([features[labels == label].mean(0) for label in range(3)])[labels]
    expected = np.trace(np.linalg.inv(np.cov(features.T)) @ np.cov(means.T))
    assert h_score(features, labels) == pytest.approx(expected, rel=5e-3)


def test_the_h_score_of_few_rows_is_finite_and_tells_labels_apart() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 8)
    features = rng.normal(size=(16, 384))
    told = features + 2 * rng.normal(size=(2, 384))[labels]
    assert h_score(told, labels) > h_score(features, labels) >= 0
    assert h_score(np.ones((16, 384)), labels) == 0
