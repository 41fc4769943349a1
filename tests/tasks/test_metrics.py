"""Metrics against numbers worked out by hand."""

from __future__ import annotations

import pytest

from pidep.tasks.metrics import score


def test_accuracy() -> None:
    assert score("accuracy", [0, 1, 1, 0], [0, 1, 0, 0]) == 0.75


def test_macro_f1_weighs_labels_alike() -> None:
    # label 0: precision 3/4, recall 1, F1 6/7; label 1 is never predicted: F1 0
    assert score("macro_f1", [0, 0, 0, 1], [0, 0, 0, 0]) == pytest.approx(3 / 7)
