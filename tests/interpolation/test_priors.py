"""Class priors: calibration, estimates from rows without labels, and the bias they make."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pidep.interpolation.held_out import HeldOut
from pidep.interpolation.priors import (
    Calibration,
    calibrate,
    estimate_priors,
    label_shares,
    prior_bias,
)

EVEN = (0.5, 0.5)


def drawn(priors: tuple[float, ...], rows: int, *, seed: int, distance: float = 2.0):
    """Labels drawn by priors, and logits that are exact for equal shares: classes are Gaussians
    of variance 1 at distance `distance` along axes of their own.
    """
    rng = np.random.default_rng(seed)
    labels = rng.choice(len(priors), rows, p=priors)
    centres = np.eye(len(priors)) * distance / np.sqrt(2)
    points = centres[labels] + rng.normal(size=(rows, len(priors)))
    return points @ centres.T, labels


@pytest.mark.parametrize("priors", [(0.2, 0.8), (0.5, 0.5), (0.05, 0.95), (0.1, 0.3, 0.6)])
def test_shares_of_rows_without_labels_are_found(priors: tuple[float, ...]) -> None:
    logits, _ = drawn(priors, 4000, seed=0)
    even = (1 / len(priors),) * len(priors)
    assert estimate_priors(logits, even) == pytest.approx(priors, abs=0.03)


def test_the_estimate_takes_the_shares_of_training_out() -> None:
    logits, _ = drawn((0.2, 0.8), 4000, seed=1)
    learned = (0.9, 0.1)  # logits of a model that has learned these shares
    assert estimate_priors(logits + np.log(learned), learned) == pytest.approx((0.2, 0.8), abs=0.03)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1), st.integers(2, 5), st.integers(1, 40), st.floats(0.1, 1e4))
def test_estimates_are_shares_and_follow_the_order_of_labels(
    seed: int, count: int, rows: int, size: float
) -> None:
    rng = np.random.default_rng(seed)
    logits, shares = rng.normal(size=(rows, count)) * size, rng.dirichlet(np.ones(count)) + 1e-3
    shares /= shares.sum()
    found = np.array(estimate_priors(logits, tuple(shares)))
    assert found.sum() == pytest.approx(1)
    assert (found > 0).all()
    order = rng.permutation(count)
    again = estimate_priors(logits[:, order], tuple(shares[order]))
    np.testing.assert_allclose(again, found[order], atol=1e-6)


def test_a_label_that_no_row_has_keeps_a_share() -> None:
    logits, _ = drawn((1.0, 0.0), 200, seed=2, distance=12.0)
    assert 0 < estimate_priors(logits, EVEN)[1] < 0.01


def test_temperature_and_bias_are_those_that_the_logits_lack() -> None:
    logits, labels = drawn(EVEN, 4000, seed=3)
    wrong = torch.tensor(2.5 * (logits - [0.4, -0.4]))
    found = calibrate(HeldOut(wrong, torch.tensor(labels)))
    assert found.temperature == pytest.approx(2.5, rel=0.1)
    assert found.bias[0] - found.bias[1] == pytest.approx(0.8, abs=0.15)
    assert found.rows == 4000
    np.testing.assert_allclose(found.applied(wrong), wrong.numpy() / found.temperature + found.bias)


def test_few_rows_change_little() -> None:
    # Two rows, both wrong: without a prior the temperature would be infinite.
    found = calibrate(HeldOut(torch.tensor([[4.0, 0.0], [0.0, 4.0]]), torch.tensor([1, 0])))
    assert 1 < found.temperature < 4
    assert found.bias == pytest.approx((0, 0), abs=1e-3)


def test_calibration_of_fp32_logits_is_that_of_fp64() -> None:
    logits, labels = drawn(EVEN, 64, seed=4)
    double = calibrate(HeldOut(torch.tensor(logits), torch.tensor(labels)))
    single = calibrate(HeldOut(torch.tensor(logits, dtype=torch.float32), torch.tensor(labels)))
    assert single.temperature == pytest.approx(double.temperature, rel=1e-3)


def test_known_priors_make_fewer_errors_than_equal_ones() -> None:
    priors = (0.2, 0.8)
    logits, labels = drawn(priors, 4000, seed=5)
    bias = np.array(prior_bias(Calibration(), priors, EVEN))
    plain, decided = ((z.argmax(1) == labels).mean() for z in (logits, logits + bias))
    assert decided > plain + 0.02
    assert bias[1] - bias[0] == pytest.approx(np.log(4))


def test_a_bias_is_exact_in_fp32_and_nothing_for_the_shares_of_training() -> None:
    shares = label_shares([0, 0, 1, 2], 3)
    assert shares == (0.5, 0.25, 0.25)
    assert prior_bias(Calibration(), shares, shares) == (0.0, 0.0, 0.0)
    found = prior_bias(Calibration(bias=(0.1, 0.0, -0.3)), (0.1, 0.2, 0.7), shares)
    assert all(float(np.float32(one)) == one for one in found)
    assert sum(found) == pytest.approx(0, abs=1e-6)
