"""The figures of the label shift benchmark, on made-up logits."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.bench_label_shift import accuracies, claims, summary
from benchmarks.label_shift_lab import Cell

SIDES = {"held": 64, "test": 900, "rest": 1200}


def made(seed: int = 0) -> dict[str, np.ndarray]:
    """A cell whose π is exact for equal shares, and whose own expert guesses."""
    rng = np.random.default_rng(seed)
    cell = {"chosen": np.frombuffer(b"mixture", np.uint8)}
    for side, rows in SIDES.items():
        labels = np.arange(rows) % 2
        points = rng.normal(size=rows) + np.where(labels == 1, 1, -1)
        logits = np.stack([-points, points], 1).astype(np.float32)
        cell |= {f"labels_{side}": labels, f"pi_{side}": logits}
        cell |= {f"uniform_{side}": logits, f"own_{side}": rng.normal(size=(rows, 2))}
        cell[f"embeddings_{side}"] = np.stack([points, rng.normal(size=rows)], 1)
    cell |= {"embeddings_train": cell["embeddings_held"], "labels_train": cell["labels_held"]}
    return cell


@pytest.mark.parametrize("positive", [0.2, 0.8])
def test_rows_without_labels_help_where_labels_are_skewed(positive: float) -> None:
    found = accuracies(made(), positive, draws=5)
    assert found["majority"] == 80
    assert found["pi_share"] == pytest.approx(100 * positive, abs=5)
    # d' is 2: 84 % with equal priors, 89 % with those of the rows.
    assert found["pi_unlabelled"] > found["pi"] + 2
    assert found["pi_known"] >= found["pi_unlabelled"] - 0.5
    assert found["own"] == pytest.approx(50, abs=5)


def test_a_claim_names_the_worst_cell_and_what_is_missing() -> None:
    rows = summary({Cell("movie", 8, 0): made(), Cell("movie", 8, 1): made(1)})
    assert [row["positive"] for row in rows] == [0.2, 0.5, 0.8]
    assert all(claim["met"] for claim in claims(rows))
    rows[1]["mean"]["pi_unlabelled"] -= 9
    first, second = claims(rows, [Cell("nyt", 8, 0)])
    assert not first["met"]
    assert "movie, 8 shots, 50% positive" in str(first["measured"])
    assert "missing: nyt-8-0" in str(second["measured"])
    assert not second["met"]
