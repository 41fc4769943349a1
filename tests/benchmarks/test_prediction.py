"""The figures of the prediction benchmark, on made-up numbers."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr

from benchmarks.bench_prediction import main
from benchmarks.prediction_claims import claims_of, goals_of, packaged_claims, tuned_claims
from benchmarks.prediction_lab import Settings
from benchmarks.prediction_table import every_table
from benchmarks.record import RESULTS
from benchmarks.transfer_mixtures import mixture_gains
from benchmarks.transfer_ranker import coverage, left_out
from benchmarks.transfer_statistics import (
    Figure,
    by_target,
    ceiling,
    reliability,
    spearman,
    statistics,
    top_overlap,
    top_regret,
)
from pidep.similarity.estimators import ESTIMATORS
from pidep.similarity.learned import FEATURES


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
            "fisher": fisher,
            "text": others,
            "fisher (batch_squared)": others,
            "random": np.zeros_like(others),
        }
        return {
            name: statistics(matrix[None], transfer, resamples=100)
            for name, matrix in matrices.items()
        }

    assert [claim["met"] for claim in claims_of(figures(good, bad))] == [True] * 4
    assert [claim["met"] for claim in claims_of(figures(-good, good))] == [False] * 4
    assert [claim["met"] for claim in claims_of(figures(np.zeros_like(good), good))] == [False] * 4


def test_goals_are_about_the_best_and_the_ceiling() -> None:
    good, transfer = made()
    figures = {
        name: statistics(matrix[None], transfer, resamples=50)
        for name, matrix in {
            "good": good,
            "fisher": -good,
            "trial": made(seed=5)[0],
            "text": good,
            "random": np.zeros_like(good),
        }.items()
    }
    reached = goals_of(figures, ceiling=0.9, shots=16)
    # As good as the text, and better than the others.
    assert [claim["met"] for claim in reached] == [True, True, True, True, False]
    assert reached[0]["target"].startswith(">= 0.550")
    assert reached[0]["measured"].startswith("good: 1.000")
    assert goals_of(figures, ceiling=0.5, shots=16)[0]["target"].startswith(">= 0.400")
    worst = dict.fromkeys(("fisher", "trial", "text", "random"), figures["fisher"])
    assert not any(claim["met"] for claim in goals_of(worst, ceiling=0.9, shots=16))


def noisy_gains(
    *, truth: float, rows: float, seeds: float, count: int = 8, num_seeds: int = 6
) -> list[np.ndarray]:
    """Gains with a true transfer of a pair, noise of each seed and noise of each test row."""
    rng = np.random.default_rng(3)
    return [
        truth * rng.normal(size=(1, count, 1))
        + seeds * rng.normal(size=(num_seeds, count, 1))
        + rows * rng.normal(size=(1, count, 60))
        for _ in range(12)
    ]


def test_reliability_is_the_share_of_true_variance() -> None:
    """Spearman and Brown: the correlation of two measurements with other noise."""
    both = frozenset({"rows", "seeds"})
    gains = noisy_gains(truth=1.0, rows=3.0, seeds=1.0)
    found = reliability(gains, over=both)
    expected = 1.0 / (1.0 + 9.0 / 60 + 1.0 / 6)
    assert found.half < found.full == pytest.approx(expected, abs=0.08)
    assert found.ceiling == pytest.approx(found.full**0.5)
    clean = noisy_gains(truth=1.0, rows=0.0, seeds=0.0)
    assert reliability(clean, over=both).full == pytest.approx(1)
    nothing = reliability(noisy_gains(truth=0.0, rows=3.0, seeds=1.0), over=both)
    assert abs(nothing.half) < 0.2
    assert reliability(gains, over=both) == found  # seeded


def test_halves_share_only_what_they_may() -> None:
    gains = noisy_gains(truth=0.0, rows=0.0, seeds=1.0)
    found = ceiling(gains, splits=50)
    # Noise of seeds alone repeats in other rows, and not with other seeds.
    assert found["rows"].half == pytest.approx(1)
    assert abs(found["seeds"].half) < 0.25
    assert abs(found["both"].half) < 0.25
    assert ceiling([own[:1] for own in gains], splits=5).keys() == {"rows"}


def test_rankers_do_not_see_the_target_that_they_rank() -> None:
    rng = np.random.default_rng(0)
    told, transfer = made(noise=0.3)
    names = [f"task-{number}" for number in range(8)]
    features = {"told": np.stack([told, told]), "noise": rng.normal(size=(2, 8, 8))}
    found = left_out(features, transfer, names, called="ranker")
    assert statistics(found["ranker"], transfer, resamples=9)["spearman"].value > 0.8
    other = transfer.copy()
    # Nothing of the target, as target or as helper.
    other[:, 3], other[3, :] = rng.normal(size=8), 0.0
    changed = left_out(features, other, names, called="ranker")
    for name, values in found.items():
        assert values[:, :, 3] == pytest.approx(changed[name][:, :, 3]), name
    assert found["ranker"][:, :, 4] != pytest.approx(changed["ranker"][:, :, 4])


def test_intervals_cover_targets_that_were_left_out() -> None:
    rng = np.random.default_rng(0)
    told = rng.normal(size=(2, 8, 8))
    gains = 0.03 + 0.02 * told + 0.01 * rng.normal(size=told.shape)
    features = {name: rng.normal(size=told.shape) for name in FEATURES} | {"h-score": told}
    names = [f"task-{number}" for number in range(8)]
    found = coverage(features, gains, names)
    assert found["asked"] == 0.9
    assert found["covered"] == pytest.approx(0.9, abs=0.1)
    assert 0.01 < found["half_width"] < 0.04
    # A target like no other: its own pool does not cover it, and the others' intervals are wide.
    wild = gains.copy()
    wild[:, :, 3] = 5.0
    assert coverage(features, wild, names)["covered"] == pytest.approx(7 / 8)


def test_claims_about_the_packaged_tasks() -> None:
    good, transfer = made()
    by = {
        "h-score or trial": good,
        "fisher": -good,
        "trial": made(seed=5)[0],
        "random": np.zeros_like(good),
    }
    figures = {
        name: statistics(matrix[None], transfer, resamples=50) for name, matrix in by.items()
    }
    found = packaged_claims(figures, ceiling=0.5, shots=16)
    assert [claim["met"] for claim in found] == [*[True] * 4, False, False, True]
    assert all(claim["claim"].startswith("packaged tasks: ") for claim in found)
    turned = {**figures, "h-score or trial": figures["fisher"], "fisher": figures["trial"]}
    assert not any(claim["met"] for claim in packaged_claims(turned, ceiling=0.5, shots=16)[:4])
    gain = Figure(0.03, np.full(9, 0.03), (0.07, -0.01))
    tuned = {"trial": gain, "random": Figure(0.01, np.full(9, 0.01), (0.02, 0.0))}
    above, below = tuned_claims(tuned, shots=16)
    assert (above["met"], below["met"], below["measured"]) == (True, False, "0.0100")


class MadeUpLab:
    """Tasks whose mixtures gain the mean number of their helpers, in percent."""

    def __init__(self, count: int) -> None:
        self.settings = Settings(seeds=(0, 1))
        self.tasks = [SimpleNamespace(name=str(number)) for number in range(count)]

    def expert(self, task: Any, draw: Any) -> str:
        return "own"

    def correct(self, task: Any, own: str, *helpers: int) -> np.ndarray:
        return np.full(10, 0.5 + (sum(helpers) / len(helpers) / 100 if helpers else 0.0))


def test_the_three_that_are_predicted_best_are_mixed() -> None:
    lab: Any = MadeUpLab(8)
    full: Any = {task.name: number for number, task in enumerate(lab.tasks)}
    good = np.broadcast_to(np.arange(8.0)[:, None], (2, 8, 8))
    found = mixture_gains(lab, full, {"good": good, "bad": -good}, shots=8, resamples=50)
    # The best of 7, 6, 5, 4 without the target itself.
    assert found["good"].value == pytest.approx((5 * 6.0 + 17 / 3 + 16 / 3 + 15 / 3) / 800)
    assert found["bad"].value == pytest.approx((5 * 1.0 + 2.0 + 5 / 3 + 4 / 3) / 800)
    assert found["bad"].value < found["random"].value < found["good"].value
    assert (found["good"] - found["bad"]).interval[0] > 0


def test_the_page_shows_the_figures_of_the_benchmark() -> None:
    raw = json.loads((RESULTS / "prediction.json").read_text())["raw"]
    page = (Path(__file__).parents[2] / "docs/concepts/prediction.md").read_text()
    for made_of_figures in (*every_table(raw), *every_table(raw["packaged"])):
        assert made_of_figures in page, "python -m benchmarks.prediction_table prints the tables"


@pytest.mark.slow
def test_a_small_run_writes_every_estimator_and_goes_on_from_its_folder(tmp_path: Path) -> None:
    arguments = [
        *("--out", str(tmp_path / "lab"), "--results", str(tmp_path), "--fisher-rows", "8"),
        *("--train-rows", "120", "--test-rows", "10", "--full-steps", "2", "--few-steps", "2"),
        *("--sites", "encoder.layer.5.attention.self.query", "--clusters", "1"),
        *("--shots", "2", "3", "--mixture-shots", "3", "--tuned-shots", "3", "--seeds", "0", "1"),
    ]
    main(arguments)
    path = tmp_path / "prediction.json"
    raw = json.loads(path.read_text())["raw"]
    assert raw["reliability"].keys() == {"2 shots", "3 shots", "zero-shot"}
    for kind in raw["reliability"]:
        assert raw["figures"][kind].keys() >= {
            *ESTIMATORS,
            "ranker",
            "ranker (kept)",
            "usual gain",
        }
    assert "fisher (true)" in raw["figures"]["2 shots"]
    assert len(raw["pairs"]) == 12
    # With three helpers in the pool, every choice of three is the same.
    gains = [figure["value"] for figure in raw["top3_mixture"]["3 shots"]["gain"].values()]
    assert len(gains) == 4
    assert gains == pytest.approx([gains[0]] * 4)
    assert raw["top3_pi"]["3 shots"]["gain"].keys() == {"h-score", "random"}
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "lab").rglob("*.json")}
    main(arguments)
    again = json.loads(path.read_text())["raw"]
    assert {key: again[key] for key in ("figures", "pairs")} == {
        key: raw[key] for key in ("figures", "pairs")
    }
    changed = [path.name for path, when in kept.items() if path.stat().st_mtime_ns != when]
    assert changed == ["cpu_seconds.json"]
