"""What a pool learns of its own transfers, on made-up gains."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pidep.errors import UsageError
from pidep.experts.folder import write_expert
from pidep.similarity.learned import (
    COVERAGE,
    FEATURES,
    LearnedTransfer,
    MeasuredPair,
    PredictedGain,
    digests_of,
    fresh_learned,
    read_learned,
    write_learned,
)
from pidep.similarity.learned_text import (
    known_gains,
    learned_json,
    learned_sentences,
    points_interval,
)
from tests.conftest import make_expert

NAMES = tuple("abcdef")


def made(*, noise: float = 0.01, seed: int = 0, names: tuple[str, ...] = NAMES) -> LearnedTransfer:
    """Gains of 3 points on average that follow the H-score, in whatever scale the target has it."""
    rng = np.random.default_rng(seed)
    pairs = []
    for target in names:
        scale, start = rng.uniform(1, 9), rng.normal()
        for helper in names:
            if helper != target:
                told = rng.normal()
                features = {name: float(rng.normal()) for name in FEATURES}
                features["h-score"] = start + scale * told
                gain = 0.03 + 0.02 * told + noise * rng.normal()
                pairs.append(MeasuredPair(target, helper, features, float(gain)))
    return LearnedTransfer({name: f"sha256:{name}" for name in names}, 8, 0, tuple(pairs))


def test_parts_add_up_to_the_gain() -> None:
    learned = made()
    features = {pair.helper: pair.features for pair in learned.pairs if pair.target == "a"}
    found = learned.predict(features)
    for helper, said in found.items():
        assert said.gain == pytest.approx(learned.level + sum(said.parts.values()))
        assert tuple(sorted(said.parts)) == FEATURES
        assert said.half_width == learned.half_width
        assert PredictedGain.from_json(json.loads(json.dumps(said.to_json()))) == said, helper
    best = max(features, key=lambda helper: features[helper]["h-score"])
    assert max(found, key=lambda helper: found[helper].gain) == best


def test_a_target_is_predicted_by_what_never_saw_it() -> None:
    learned = made()
    changed = [
        replace(pair, gain=9.0) if "a" in (pair.target, pair.helper) else pair
        for pair in learned.pairs
    ]
    other = replace(learned, pairs=tuple(changed))
    for place, said in learned.left_out.items():
        assert (other.left_out[place].gain == pytest.approx(said.gain)) == (place[0] == "a")


def test_the_interval_covers_new_targets() -> None:
    """Over several pools, gains of other targets lie within it about as often as it says."""
    inside = []
    for pool in range(5):
        learned, new = made(noise=0.01, seed=pool), made(noise=0.01, seed=100 + pool)
        assert learned.half_width is not None
        for target in NAMES:
            own = {pair.helper: pair for pair in new.pairs if pair.target == target}
            said = learned.predict({name: pair.features for name, pair in own.items()})
            inside += [
                abs(said[name].gain - pair.gain) <= learned.half_width for name, pair in own.items()
            ]
        assert 0.01 < learned.half_width < 0.05
    assert np.mean(inside) == pytest.approx(COVERAGE, abs=0.08)


def test_the_correlation_is_that_of_what_was_left_out() -> None:
    assert made(noise=0.001).rank_correlation > 0.9
    assert abs(made(noise=10.0).rank_correlation) < 0.6


def test_few_pairs_have_no_interval_and_few_targets_no_prediction() -> None:
    learned = made(names=("a", "b", "c"))
    assert learned.left_out == {}
    assert learned.half_width is None
    assert learned.rank_correlation is None
    assert "too few pairs for an interval" in learned_sentences(learned)
    said = PredictedGain(0.03, {"h-score": 0.0}, None)
    assert points_interval(said) == "not calibrated"
    with pytest.raises(UsageError, match="at least three targets"):
        _ = learned.without("a").ranker


def test_points_and_sentences() -> None:
    assert points_interval(PredictedGain(0.03, {"h-score": 0.01}, 0.05)) == "-1.0 to 9.0"
    learned = made()
    first, second, third = learned_sentences(learned)
    assert first.startswith("30 pairs of 6 targets with 8 rows of each label: a helper adds 3")
    assert f"rank correlation {learned.rank_correlation:.2f}" in second
    assert third.startswith("90% of the measured gains lie within")
    assert learned_json(learned)["half_width"] == learned.half_width


@pytest.fixture
def pool(tiny, tmp_path: Path) -> Path:
    for seed, name in enumerate(NAMES):
        expert = make_expert(tiny, name=name, seed=seed)
        write_expert(expert, tmp_path / "pool" / name, fisher={"a": np.ones(1, np.float32)})
    return tmp_path / "pool"


def test_it_is_kept_with_the_pool_and_a_changed_pool_is_noticed(pool: Path, tiny) -> None:
    assert read_learned(pool) is None
    with pytest.raises(UsageError, match=r"has learned nothing .*; run pidep graph .* --learn"):
        fresh_learned(pool)
    learned = replace(made(), experts=digests_of(pool))
    write_learned(pool, learned)
    assert fresh_learned(pool) == learned
    known = known_gains(pool, "a")
    assert [one.predicted.gain for one in known] == sorted(
        (one.predicted.gain for one in known), reverse=True
    )
    assert {one.helper for one in known} == set("bcdef")
    assert known_gains(pool, "nobody") == []
    again = {"fisher": {"a": np.ones(1, np.float32)}}
    write_expert(make_expert(tiny, name="b", seed=77), pool / "b", **again)
    with pytest.raises(UsageError, match=r"has changed .* \('b' is another expert\)"):
        fresh_learned(pool)
    write_expert(make_expert(tiny, name="new", seed=7), pool / "new", **again)
    with pytest.raises(UsageError, match=r"\('new' is new, and 1 more\); run pidep graph"):
        fresh_learned(pool)
    # Also a pool that has changed shows what was measured.
    assert known_gains(pool, "a") == known


@pytest.mark.parametrize(
    "damage", [b"{", b'{"format": 7}', b'{"format": 1, "pairs": 3}', b"[]", b"\xff"]
)
def test_a_damaged_file_is_refused(damage: bytes, pool: Path) -> None:
    path = write_learned(pool, made())
    path.write_bytes(damage)
    with pytest.raises(UsageError, match=r"transfer.json: damaged .* run pidep graph .* --learn"):
        read_learned(pool)
