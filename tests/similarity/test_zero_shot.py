from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pidep.errors import UsageError
from pidep.similarity.fisher import diagonal_fisher
from pidep.similarity.pool import PoolEntry
from pidep.similarity.zero_shot import rank_without_labels, similarity_weights
from tests.conftest import make_expert

FILMS = ["good film", "a great film", "the film was awful", "a very bad film"] * 4
OTHERS = ["negative", "very very very", "positive positive", "the the a"] * 4


def test_the_helper_trained_on_such_texts_comes_first(tiny) -> None:
    expert = replace(make_expert(tiny), logit_scale=5.0)
    helpers = {
        name: PoolEntry(
            expert, diagonal_fisher(tiny, expert, texts, [index % 2 for index in range(len(texts))])
        )
        for name, texts in (("films", FILMS), ("others", OTHERS))
    }
    near = rank_without_labels(tiny, helpers, [f"{text} was" for text in FILMS])
    assert [one.name for one in near] == ["films", "others"]
    assert (
        rank_without_labels(tiny, helpers, [f"very {text}" for text in OTHERS])[0].name == "others"
    )
    assert all(0 <= one.similarity <= 1 for one in near)


def test_it_is_one_where_target_and_helper_are_the_same(tiny) -> None:
    expert = make_expert(tiny)
    stored = diagonal_fisher(tiny, expert, FILMS, kind="true", seed=3)
    for factor in (
        1,
        1e-9,
    ):  # an embedding's scale says how well its expert was trained, and nothing about its task
        entry = PoolEntry(
            expert, {name: array * np.float32(factor) for name, array in stored.items()}
        )
        (near,) = rank_without_labels(tiny, {"self": entry}, FILMS, seed=3)
        assert near.similarity == pytest.approx(1, abs=1e-6)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6), st.floats(1e-3, 1e3))
def test_weights_are_on_the_simplex_and_keep_the_order(
    similarities: list[float], temperature: float
) -> None:
    alpha = similarity_weights(similarities, temperature=temperature)
    assert alpha.sum() == pytest.approx(1)
    assert (alpha >= 0).all()
    order = np.argsort(similarities, kind="stable")
    assert (np.diff(alpha[order]) >= 0).all()


def test_the_temperature_goes_from_the_nearest_alone_to_all_alike() -> None:
    np.testing.assert_allclose(similarity_weights([0.5, 0.6], temperature=1e-4), [0, 1], atol=1e-12)
    np.testing.assert_allclose(
        similarity_weights([0.5, 0.6], temperature=1e6), [0.5, 0.5], atol=1e-6
    )
    np.testing.assert_allclose(
        similarity_weights([0.5, 0.6], temperature=0.1), [1 / (1 + np.e), np.e / (1 + np.e)]
    )
    with pytest.raises(UsageError, match="temperature above 0"):
        similarity_weights([0.5], temperature=0)
    with pytest.raises(UsageError, match="a helper"):
        similarity_weights([], temperature=1)
