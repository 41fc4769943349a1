"""Every estimator: a number a helper, the passes it says, and one-line refusals."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pidep.errors import ExpertError, UsageError
from pidep.similarity.estimators import ESTIMATORS, Cost, Estimator, Target
from pidep.similarity.trial import rank_by_trial
from pidep.similarity.zero_shot import rank_without_labels
from tests.similarity.estimators.samples import NAMES, ROWS, made_helper, made_pool

SHARE_A_PASS = ("trial", "leep", "nce", "logme", "h-score")
MADE_BEFORE = [name for name in ESTIMATORS if " point" in name or name == "fisher"]
"""Their passes over the target's rows are made by `point_facts` and `diagonal_fisher`."""


def counted(backbone: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of rows of every forward pass from now on."""
    sizes: list[int] = []
    embed = backbone.embed
    monkeypatch.setattr(
        backbone,
        "embed",
        lambda texts, **options: (sizes.append(len(texts)), embed(texts, **options))[1],
    )
    return sizes


@pytest.mark.parametrize("name", ESTIMATORS)
def test_it_gives_every_helper_a_number_at_its_cost(
    tiny: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, helpers = made_pool(tiny)
    sizes, estimator = counted(tiny, monkeypatch), ESTIMATORS[name]
    found = estimator(target, helpers)
    assert tuple(found) == NAMES or set(found) == set(NAMES)
    assert all(isinstance(value, float) for value in found.values())
    if name != "labels":  # the helpers' labels have the same texts
        assert len(set(found.values())) > 1
    cost = estimator.cost
    passes = 0 if name in MADE_BEFORE else cost.task_forward + cost.pair_forward * len(helpers)
    assert sum(sizes) == passes * len(ROWS.rows)
    assert estimator.name == name


def test_the_order_of_the_helpers_does_not_matter(tiny: Any) -> None:
    target, helpers = made_pool(tiny)
    turned = dict(reversed(helpers.items()))
    for estimator in ESTIMATORS.values():
        assert estimator(target, turned) == pytest.approx(estimator(target, helpers), rel=1e-4)


def test_relatives_of_the_trial_share_its_forward_pass(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, helpers = made_pool(tiny)
    sizes = counted(tiny, monkeypatch)
    for name in SHARE_A_PASS:
        ESTIMATORS[name](target, helpers)
    assert sum(sizes) == len(helpers) * len(ROWS.rows)


def test_the_existing_rankings_are_behind_the_interface(tiny: Any) -> None:
    target, helpers = made_pool(tiny)
    experts = {name: helper.expert for name, helper in helpers.items()}
    tried = rank_by_trial(target.scorer, ROWS, experts)
    assert ESTIMATORS["trial"](target, helpers) == pytest.approx(
        {near.name: near.similarity for near in tried}, rel=1e-5
    )

    class Entry:
        def __init__(self, helper: Any) -> None:
            self.expert, self.embedding = helper.expert, helper.fisher

    entries: Any = {name: Entry(helper) for name, helper in helpers.items()}
    zero = rank_without_labels(tiny, entries, ROWS.rows)
    assert ESTIMATORS["no labels"](target, helpers) == {near.name: near.similarity for near in zero}


def test_texts_and_labels_compare_what_the_bare_backbone_reads(tiny: Any) -> None:
    target, helpers = made_pool(tiny)
    own = tiny.encode(ROWS.rows, max_length=12).numpy().astype(np.float64).mean(0)
    same = {"one": replace(helpers["one"], mean_text=3 * own)}
    assert ESTIMATORS["text"](target, same)["one"] == pytest.approx(1)
    assert ESTIMATORS["labels"](target, same)["one"] == pytest.approx(1)
    turned = replace(same["one"].expert, label_embeddings=-target.scorer.label_embeddings.numpy())
    other = ESTIMATORS["labels"](target, {"one": replace(same["one"], expert=turned)})["one"]
    cosines = -target.scorer.label_embeddings @ target.scorer.label_embeddings.T
    assert other == pytest.approx(float(cosines.max(1).values.mean()))


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("fisher", UsageError, "target: has no task embedding; train its own expert first"),
        ("text", ExpertError, "'one': the pool keeps no mean embedding of its rows"),
        ("no labels", ExpertError, "'one': has no task embedding"),
        ("fisher at the mean point", ExpertError, "nothing of its task at the base point 'mean'"),
    ],
)
def test_what_is_missing_is_named(
    tiny: Any, name: str, error: type[Exception], message: str
) -> None:
    target, _ = made_pool(tiny)
    bare = Target(target.scorer, ROWS)
    with pytest.raises(error, match=message):
        ESTIMATORS[name](bare, {"one": made_helper(tiny, "one", seed=1)})


def test_a_target_without_facts_at_the_point(tiny: Any) -> None:
    target, helpers = made_pool(tiny)
    for name in ("fisher at the random point", "gradient cosine at the random point"):
        with pytest.raises(UsageError, match="nothing is known of its rows at the base point"):
            ESTIMATORS[name](Target(target.scorer, ROWS), helpers)


def test_an_estimate_that_is_not_finite_is_refused(tiny: Any) -> None:
    target, helpers = made_pool(tiny)
    broken = Estimator("broken", Cost(), lambda _, some: dict.fromkeys(some, float("nan")))
    with pytest.raises(ExpertError, match="'broken': the estimate for helper 'one' is not finite"):
        broken(target, helpers)
