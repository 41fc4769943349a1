"""The learned ranker on made-up transfers."""

from __future__ import annotations

import numpy as np
import pytest

from pidep.errors import UsageError
from pidep.similarity.estimators.ranker import USUAL_GAIN, Trialled, fit_ranker

HELPERS = [f"helper-{number}" for number in range(6)]


def made(
    count: int, *, seed: int = 0, told: float = 1.0, usual: float = 0.0, noise: float = 0.1
) -> list[Trialled]:
    """Targets whose gains follow one feature of three, and a liking for some helpers."""
    rng = np.random.default_rng(seed)
    liked = dict(zip(HELPERS, np.random.default_rng(99).normal(size=6), strict=True))
    found = []
    for number in range(count):
        scale, level = rng.uniform(0.1, 10), rng.normal()
        signal = {helper: rng.normal() for helper in HELPERS}
        features = {
            helper: {
                "told": 100 + scale * signal[helper],  # another scale for every target
                "noise": float(rng.normal()),
                "constant": 0.3,
            }
            for helper in HELPERS
        }
        gains = {
            helper: level + told * signal[helper] + usual * liked[helper] + noise * rng.normal()
            for helper in HELPERS
        }
        found.append(Trialled(f"target-{number}", features, gains))
    return found


def correlation(examples: list[Trialled], test: list[Trialled]) -> float:
    ranker = fit_ranker(examples)
    found = []
    for one in test:
        scores = ranker(one.features)
        pair = [[scores[helper], one.gains[helper]] for helper in one.features]
        found.append(np.corrcoef(np.array(pair).T)[0, 1])
    return float(np.mean(found))


def test_it_learns_the_feature_that_tells_and_not_the_others() -> None:
    ranker = fit_ranker(made(8))
    assert abs(ranker.weights["told"]) > 10 * abs(ranker.weights["noise"])
    assert ranker.weights["constant"] == 0
    assert correlation(made(8), made(5, seed=1)) > 0.9


def test_it_learns_which_helpers_are_good_everywhere() -> None:
    examples = made(8, told=0.0, usual=1.0, noise=0.2)
    assert fit_ranker(examples).weights[USUAL_GAIN] > 0.3
    assert correlation(examples, made(5, seed=1, told=0.0, usual=1.0, noise=0.2)) > 0.8


def test_gains_of_chance_get_a_large_penalty() -> None:
    """A target's own gains are not in its helpers' usual gain, or noise would look like signal."""
    ranker = fit_ranker(made(6, told=0.0, usual=0.0, noise=1.0))
    assert ranker.penalty >= 100
    assert all(0 <= weight < 0.25 for weight in ranker.weights.values())


def test_no_weight_is_below_0() -> None:
    """An estimator that ranks the wrong way round is not used, and not turned."""
    ranker = fit_ranker(made(8, told=-1.0))
    assert ranker.weights["told"] == 0
    assert min(ranker.weights.values()) >= 0


def test_scores_add_up_and_do_not_depend_on_units_or_order() -> None:
    examples = made(8)
    ranker, features = fit_ranker(examples), examples[0].features
    scores = ranker(features)
    for helper, parts in ranker.explain(features).items():
        assert sum(parts.values()) == pytest.approx(scores[helper])
    other = {
        helper: {**own, "told": 7 - 3 * -own["told"]} for helper, own in reversed(features.items())
    }
    assert ranker(other) == pytest.approx(scores)
    turned = fit_ranker(list(reversed(examples)))
    assert turned.weights == pytest.approx(ranker.weights)


def test_what_it_cannot_learn_from_is_refused() -> None:
    with pytest.raises(UsageError, match="at least three targets, found 2"):
        fit_ranker(made(2))
    examples = made(4)
    short = Trialled("target-9", examples[0].features, {"helper-0": 1.0})
    with pytest.raises(UsageError, match="'target-9' has features of 6 helpers and gains of 1"):
        fit_ranker([*examples, short])
    with pytest.raises(UsageError, match="helper 'x' lacks 'constant'"):
        fit_ranker(examples)({"x": {"told": 1.0, "noise": 0.0}})
