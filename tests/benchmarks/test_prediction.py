"""The figures of the prediction benchmark, on made-up numbers."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from benchmarks.bench_prediction import claims_of
from benchmarks.transfer_statistics import (
    Figure,
    by_target,
    spearman,
    statistics,
    top_overlap,
    top_regret,
)


def made(count: int = 8, *, noise: float = 0.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A transfer matrix with a level for each target, and a prediction that does not see the
    levels.
    """
    rng = np.random.default_rng(seed)
    inside = rng.normal(size=(count, count))
    return inside + noise * rng.normal(size=(count, count)), inside + 100 * rng.normal(size=count)


def test_spearman_is_scipys_with_ties() -> None:
    rng = np.random.default_rng(1)
    left, right = rng.integers(0, 5, (4, 20)).astype(float), rng.normal(size=(4, 20))
    expected = [spearmanr(a, b).statistic for a, b in zip(left, right, strict=True)]
    assert spearman(left, right) == pytest.approx(expected)
    assert spearman(np.ones(5), right[0, :5]) == 0


def test_by_target_leaves_out_a_tasks_own_expert() -> None:
    matrix = np.array([[0.0, 1, 2], [3, 0, 5], [6, 7, 0]])
    assert by_target(matrix).tolist() == [[3, 6], [1, 7], [2, 5]]
    assert by_target(np.stack([matrix, -matrix])).shape == (2, 3, 2)


def test_regret() -> None:
    transfer = np.array([0.1, 0.3, -0.2, 0.0])
    assert top_regret(np.array([0.0, 9, 1, 2]), transfer) == 0
    assert top_regret(np.array([0.0, 1, 9, 2]), transfer) == pytest.approx(0.5)
    assert top_regret(np.array([9.0, 9, 1, 2]), transfer) == pytest.approx(
        0.1
    )  # one of two, at random
    assert top_regret(np.ones(4), transfer) == pytest.approx(0.3 - transfer.mean())


def test_overlap_and_its_ties() -> None:
    transfer = np.arange(6.0)
    assert top_overlap(transfer, transfer) == 1
    assert top_overlap(-transfer, transfer) == 0
    assert top_overlap(np.ones(6), transfer) == pytest.approx(3 / 6)
    assert top_overlap(np.array([0.0, 0, 9, 0, 0, 9]), transfer) == pytest.approx(
        (1 + 2 / 4) / 3
    )  # the third place is one of four


def test_levels_of_the_targets_do_not_matter() -> None:
    predicted, transfer = made()
    found = statistics(predicted[None], transfer, resamples=50)
    assert found["spearman"].value == pytest.approx(1)
    assert found["spearman"].interval == pytest.approx((1, 1))
    assert found["spearman_by_target"].value == pytest.approx(1)
    assert found["regret"].value == pytest.approx(0)
    assert found["top3_overlap"].value == pytest.approx(1)
    assert statistics(-predicted[None], transfer, resamples=50)["spearman"].value == pytest.approx(
        -1
    )


def test_a_constant_prediction_is_a_random_choice() -> None:
    _, transfer = made()
    found = statistics(np.zeros((1, 8, 8)), transfer, resamples=50)
    rows = by_target(transfer)
    assert found["spearman"].value == found["spearman_by_target"].value == 0
    assert found["regret"].value == pytest.approx((rows.max(1) - rows.mean(1)).mean())
    assert found["top3_overlap"].value == pytest.approx(3 / 7)


def test_seeds_are_averaged() -> None:
    predicted, transfer = made()
    found = statistics(np.stack([predicted, -predicted]), transfer, resamples=50)
    worst = by_target(transfer).max(1) - by_target(transfer).min(1)
    assert found["spearman"].value == pytest.approx(0)
    assert found["regret"].value == pytest.approx(worst.mean() / 2)


def test_the_bootstrap_covers_the_figure_and_is_repeatable() -> None:
    predicted, transfer = made(noise=2.0)
    found = statistics(predicted[None], transfer, resamples=500)
    for figure in found.values():
        low, high = figure.interval
        assert low < figure.value < high
    again = statistics(predicted[None], transfer, resamples=500)
    assert {name: figure.interval for name, figure in again.items()} == {
        name: figure.interval for name, figure in found.items()
    }
    # The interval is over targets, not over pairs: one good target among bad ones widens it.
    regrets = top_regret(by_target(predicted), by_target(transfer))
    draws = np.random.default_rng(0).integers(8, size=(500, 8))
    assert found["regret"].interval == pytest.approx(
        tuple(np.percentile(regrets[draws].mean(1), [2.5, 97.5]))
    )


def test_differences_are_paired() -> None:
    predicted, transfer = made(noise=2.0)
    found = statistics(predicted[None], transfer, resamples=100)["regret"]
    assert (found - found).interval == (0, 0)


def test_claims_say_what_was_measured_whoever_wins() -> None:
    good, transfer = made()
    bad, _ = made(seed=9)

    def figures(fisher: np.ndarray, others: np.ndarray) -> dict[str, dict[str, Figure]]:
        matrices = {
            "empirical": fisher,
            "text": others,
            "batch_squared": others,
            "random": np.zeros_like(others),
        }
        return {
            name: statistics(matrix[None], transfer, resamples=100)
            for name, matrix in matrices.items()
        }

    assert [claim["met"] for claim in claims_of(figures(good, bad))] == [True] * 4
    assert [claim["met"] for claim in claims_of(figures(-good, good))] == [False] * 4
    assert [claim["met"] for claim in claims_of(figures(np.zeros_like(good), good))] == [False] * 4
