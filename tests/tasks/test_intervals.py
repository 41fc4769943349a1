"""Intervals of metrics: they hold the metric, shrink with the rows, and cover what they claim."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pidep.tasks.metrics import score, score_texts
from pidep.tasks.metrics.intervals import (
    Interval,
    difference,
    f1_interval,
    interval,
    interval_of_texts,
    wilson,
)


def drawn(
    rows: int, right: float, *, classes: int = 3, seed: int = 0
) -> tuple[list[int], list[int]]:
    """Labels, and predictions of which this share is right."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, rows)
    wrong = rng.random(rows) >= right
    predictions = np.where(wrong, (labels + rng.integers(1, classes, rows)) % classes, labels)
    return labels.tolist(), predictions.tolist()


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1"])
def test_the_interval_holds_the_metric_and_shrinks_with_the_rows(metric: str) -> None:
    widths = []
    for rows in (50, 800):
        labels, predictions = drawn(rows, 0.7)
        found = interval(metric, labels, predictions)
        assert found.low < score(metric, labels, predictions) < found.high
        widths.append(found.high - found.low)
    # A sixteenth of the variance: a quarter of the width.
    assert widths[0] / widths[1] == pytest.approx(4, rel=0.25)


def test_it_says_how_it_was_computed() -> None:
    labels, predictions = drawn(60, 0.7)
    assert interval("accuracy", labels, predictions).method == "Wilson"
    assert interval("macro_f1", labels, predictions).method == "bootstrap, 1,000 resamples"
    assert wilson(0.8, 100).to_json() == [0.711171, 0.866633, "Wilson"]


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_perfect_share_is_not_certain(share: float) -> None:
    found = wilson(share, 20)
    assert 0 <= found.low < found.high <= 1
    assert found.high - found.low == pytest.approx(0.161, abs=0.001)


def test_macro_f1_covers_the_truth_about_as_often_as_it_says() -> None:
    truth = score("macro_f1", *drawn(100_000, 0.7))
    hits = 0
    for seed in range(40):
        found = interval("macro_f1", *drawn(120, 0.7, seed=seed + 1))
        hits += found.low <= truth <= found.high
    assert 34 <= hits <= 40


def test_the_difference_of_two_models_is_paired() -> None:
    labels, first = drawn(400, 0.7)
    # Ten rows better, all others the same.
    wrong = [row for row in range(400) if first[row] != labels[row]][:10]
    second = [labels[row] if row in wrong else made for row, made in enumerate(first)]
    for metric in ("accuracy", "macro_f1"):
        found = difference(metric, labels, second, first)
        assert 0 < found.low < 0.025 < found.high < 0.06
        alone = interval(metric, labels, first)
        assert found.high - found.low < (alone.high - alone.low) / 2
        same = difference(metric, labels, first, first)
        assert (same.low, same.high) == (0, 0)


def test_the_f1_of_a_label() -> None:
    labels, predictions = drawn(200, 0.8)
    found = f1_interval(labels, predictions, 1)
    right = sum(one == other == 1 for one, other in zip(labels, predictions, strict=True))
    f1 = 2 * right / (labels.count(1) + predictions.count(1))
    assert found.low < f1 < found.high
    assert f1_interval([0, 0], [0, 0], 1) == Interval(0.0, 0.0, found.method)


TEXTS = [["a dog runs on the grass", "two dogs on grass"], ["a cat sleeps"], ["a red bus"]] * 12
MADE = ["a dog on the grass", "a cat sleeps here now", "the red bus"] * 12


@pytest.mark.parametrize(
    ("metric", "method"),
    [
        ("accuracy", "Wilson"),
        ("vqa_score", "bootstrap, 1,000 resamples"),
        ("bleu4", "jackknife, 10 groups of rows"),
        ("cider", "jackknife, 10 groups of rows"),
    ],
)
def test_metrics_of_texts(metric: str, method: str) -> None:
    found = interval_of_texts(metric, TEXTS, MADE)
    assert found is not None
    assert found.method == method
    assert found.low <= score_texts(metric, TEXTS, MADE) <= found.high
    assert math.isfinite(found.low)
    assert math.isfinite(found.high)


def test_one_text_has_an_interval_only_where_it_is_a_share() -> None:
    assert interval_of_texts("bleu4", TEXTS[:1], MADE[:1]) is None
    assert interval_of_texts("accuracy", TEXTS[:1], MADE[:1]) is not None
    # One pass of these can take minutes, so there is none, and Java is not even started.
    assert interval_of_texts("meteor", TEXTS, MADE) is None
    assert interval_of_texts("spice", TEXTS, MADE) is None
