import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pidep.errors import ExpertError
from pidep.similarity.measures import (
    TensorLayout,
    explain,
    most_similar,
    normalised_cosine,
    scale_free,
    similarity,
    similarity_by_site,
    similarity_by_tensor,
)

SEEDS = st.integers(0, 10_000)
SPREADS = st.floats(0.1, 4)


def embedding(seed: int, spread: float = 1.5) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = {
        "a.query.lora_A": (2, 8),
        "a.query.lora_B": (8, 2),
        "b.value.lora_A": (2, 5),
        "b.value.lora_B": (9, 2),
    }
    return {
        name: rng.lognormal(-12, spread, shape).astype(np.float32) for name, shape in shapes.items()
    }


def scaled(tensors: dict[str, np.ndarray], *factors: float) -> dict[str, np.ndarray]:
    return {
        name: array * np.float32(factor)
        for (name, array), factor in zip(tensors.items(), factors, strict=True)
    }


@given(SEEDS, SEEDS, SPREADS)
def test_symmetric_and_in_the_unit_interval(first: int, second: int, spread: float) -> None:
    left, right = embedding(first, spread), embedding(second + 10_001, spread)
    assert similarity(left, right) == similarity(right, left)
    assert 0 <= similarity(left, right) < 1


@given(SEEDS, st.lists(st.floats(1e-6, 1e6), min_size=4, max_size=4))
def test_one_for_itself_and_for_what_is_proportional_tensor_by_tensor(
    seed: int, factors: list[float]
) -> None:
    own = embedding(seed)
    assert similarity(own, own) == pytest.approx(1, abs=1e-12)
    assert similarity(own, scaled(own, *factors)) == pytest.approx(1, abs=1e-9)


@given(SEEDS, st.floats(1e-6, 1e6))
def test_a_common_factor_changes_nothing(seed: int, factor: float) -> None:
    left, right = embedding(seed), embedding(seed + 1)
    both = similarity(scaled(left, *[factor] * 4), scaled(right, *[factor] * 4))
    assert both == pytest.approx(similarity(left, right), abs=1e-6)
    free = similarity(scale_free(scaled(left, *[factor] * 4)), scale_free(right))
    assert free == pytest.approx(similarity(scale_free(left), scale_free(right)), abs=1e-5)


def test_a_factor_on_one_side_changes_what_is_not_free_of_scale() -> None:
    left, right = np.random.default_rng(0).lognormal(0, 1, (2, 1000)).astype(np.float32)
    assert normalised_cosine(left, right) > normalised_cosine(left * np.float32(1e6), right) + 0.05


@given(SEEDS)
def test_it_falls_as_the_logarithms_drift_apart(seed: int) -> None:
    rng = np.random.default_rng(seed)
    own = embedding(seed)
    drift = {name: rng.normal(size=array.shape) for name, array in own.items()}
    drifted = [
        {name: (own[name] * np.exp(size * drift[name])).astype(np.float32) for name in own}
        for size in (0.1, 0.5, 2.0)
    ]
    scores = [similarity(own, other) for other in drifted]
    assert scores == sorted(scores, reverse=True)
    expected = np.mean([np.exp(-np.var(0.1 * value) / 2) for value in drift.values()])
    assert scores[0] == pytest.approx(expected, abs=1e-3)


@given(SEEDS, st.integers(-30, 30))
def test_precise_however_far_apart_the_scales(seed: int, exponent: int) -> None:
    rng = np.random.default_rng(seed)
    left = rng.lognormal(0, 2, 200).astype(np.float32)
    right = (rng.lognormal(0, 2, 200) * 10.0**exponent).astype(np.float32)
    share, rest = (value.astype(np.longdouble) for value in (left, right))
    share, rest = share / (share + rest), rest / (share + rest)
    expected = float(share @ rest / np.sqrt((share @ share) * (rest @ rest)))
    assert normalised_cosine(left, right) == pytest.approx(expected, rel=1e-9)


def test_zeros_agree_with_zeros_only() -> None:
    nothing, something = np.zeros(4, np.float32), np.ones(4, np.float32)
    assert normalised_cosine(nothing, nothing) == 1
    assert normalised_cosine(nothing, something) == 0
    assert normalised_cosine(np.float32([0, 1, 1]), np.float32([0, 1, 1])) == 1


def test_the_figure_of_the_paper_by_hand() -> None:
    left, right = np.float32([1, 3]), np.float32([3, 1])
    assert normalised_cosine(left, right) == pytest.approx(2 * 0.25 * 0.75 / (0.25**2 + 0.75**2))


def test_sites_are_the_mean_of_their_tensors_and_explain_sorts_them() -> None:
    left, right = embedding(0), embedding(1)
    right["a.query.lora_A"] = left["a.query.lora_A"]
    tensors, sites = similarity_by_tensor(left, right), similarity_by_site(left, right)
    assert tensors["a.query.lora_A"] == pytest.approx(1)
    assert sites["b.value"] == pytest.approx(
        (tensors["b.value.lora_A"] + tensors["b.value.lora_B"]) / 2
    )
    assert similarity(left, right) == pytest.approx(np.mean(list(sites.values())))
    assert [(agreement.site, agreement.similarity) for agreement in explain(left, right)] == [
        ("a.query", sites["a.query"]),
        ("b.value", sites["b.value"]),
    ]


def test_the_most_similar_come_first_and_ties_by_name() -> None:
    own = embedding(0)
    others = {"far": embedding(1), "twin-b": own, "twin-a": own}
    assert [near.name for near in most_similar(own, others, top_k=3)] == ["twin-a", "twin-b", "far"]
    assert len(most_similar(own, others, top_k=2)) == 2


def test_a_layout_keeps_every_number_where_it_was() -> None:
    own = embedding(3)
    layout = TensorLayout.of(own)
    vector = layout.vector(dict(reversed(own.items())))
    for (name, shape), span in zip(layout.shapes, layout.spans, strict=True):
        np.testing.assert_array_equal(vector[span].reshape(shape), own[name])


def test_what_cannot_be_compared_is_refused() -> None:
    own = embedding(0)
    with pytest.raises(ExpertError, match="different sites"):
        similarity(own, {name: own[name] for name in list(own)[:3]})
    with pytest.raises(
        ExpertError,
        match=r"differ in shape at 'a\.query\.lora_A': \(2, 8\) and \(3, 8\); use one rank",
    ):
        similarity(own, {**own, "a.query.lora_A": np.ones((3, 8), np.float32)})
    for wrong in (-1.0, np.nan, np.inf):
        with pytest.raises(ExpertError, match="negative numbers, NaN or Inf"):
            similarity(own, {**own, "a.query.lora_A": np.full((2, 8), wrong, np.float32)})
    with pytest.raises(ExpertError, match="no tensors"):
        similarity({}, {})
