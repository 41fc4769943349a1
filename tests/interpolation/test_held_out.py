"""Folds, and the weights that held-out losses give to candidates."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pidep.interpolation.held_out import (
    averaging_weights,
    calibrated_losses,
    calibrated_together,
    confidence_in,
    stratified_folds,
)


@given(st.lists(st.integers(0, 2), min_size=6, max_size=40), st.integers(2, 5), st.integers(0, 9))
def test_folds_hold_every_row_once_and_every_class_evenly(
    labels: list[int], count: int, seed: int
) -> None:
    folds = stratified_folds(labels, count=count, seed=seed)
    assert sorted(row for fold in folds for row in fold) == list(range(len(labels)))
    assert len(folds) >= 2
    assert all(folds)
    for label in set(labels):
        sizes = [sum(labels[row] == label for row in fold) for fold in folds]
        assert max(sizes) - min(sizes) <= 1


def test_confidence_grows_with_the_rows() -> None:
    assert [confidence_in(rows) for rows in (0, 64, 192)] == [0, 0.5, 0.75]


@given(st.lists(st.floats(0, 5), min_size=2, max_size=4), st.floats(0, 50))
def test_weights_are_on_the_simplex_and_prefer_less_loss(
    means: list[float], evidence: float
) -> None:
    losses = {str(number): torch.full((3,), mean) for number, mean in enumerate(means)}
    weights = averaging_weights(losses, dict.fromkeys(losses, 1.0), evidence=evidence)
    assert sum(weights.values()) == pytest.approx(1)
    assert weights[str(means.index(min(means)))] == max(weights.values())


def test_without_evidence_the_weights_are_the_prior() -> None:
    losses = {"a": torch.zeros(4), "b": torch.ones(4)}
    prior = {"a": 1.0, "b": 3.0}
    assert averaging_weights(losses, prior, evidence=0.0) == pytest.approx({"a": 0.25, "b": 0.75})


def test_a_large_loss_does_not_overflow() -> None:
    losses = {"a": torch.full((2,), 1e4), "b": torch.full((2,), 2e4)}
    weights = averaging_weights(losses, {"a": 1.0, "b": 1.0}, evidence=100.0)
    assert weights == {"a": 1.0, "b": 0.0}


def test_calibration_takes_the_temperature_of_the_least_loss() -> None:
    labels = torch.tensor([0, 1, 0, 1])
    right = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    wrong_once = torch.cat([8 * right[:3], torch.tensor([[8.0, 0.0]])])
    losses, temperature = calibrated_together({"right": right, "wrong": wrong_once}, labels)
    assert temperature > 1
    for logits, loss in ((right, losses["right"]), (wrong_once, losses["wrong"])):
        expected = torch.nn.functional.cross_entropy(logits / temperature, labels, reduction="none")
        torch.testing.assert_close(loss, expected)
    # Taken alone, logits that are always right have the lowest temperature as their best.
    plain = torch.nn.functional.cross_entropy(right, labels, reduction="none")
    torch.testing.assert_close(calibrated_losses(right, labels), plain)
