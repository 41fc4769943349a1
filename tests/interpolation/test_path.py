"""The straight line between two experts."""

from dataclasses import replace

import pytest
import torch

from pidep.adapters.mixture import Mixture
from pidep.errors import ExpertError, UsageError
from pidep.interpolation.path import ExpertPath, PathPoint, evaluate_path
from pidep.tasks.data import Split
from pidep.training.scorer import Scorer, predict_logits
from tests.conftest import make_expert

ROWS = Split(
    ["the film was good", "awful", "a bad bad film", "a great film", "very good", "the film"],
    [1, 0, 0, 1, 1, 0],
)


def scorer_of(tiny, expert) -> Scorer:  # type: ignore[no-untyped-def]
    return Scorer(
        tiny, torch.from_numpy(expert.label_embeddings), expert.logit_scale, expert.max_length
    )


def loss_of(scorer: Scorer, mixture: Mixture) -> float:
    return float(
        torch.nn.functional.cross_entropy(
            predict_logits(scorer, ROWS.rows, mixture), torch.tensor(ROWS.labels)
        )
    )


def test_the_ends_are_the_experts_and_the_middle_is_their_mean(tiny) -> None:
    one, two = (
        make_expert(tiny, seed=1),
        make_expert(tiny, seed=2, rank=3, name="other", scaling=0.7),
    )
    scorer = scorer_of(tiny, one)
    path = evaluate_path(scorer, one, two, ROWS, "accuracy", num_points=3)
    assert [point.t for point in path.points] == [0, 0.5, 1]
    ends = [loss_of(scorer, Mixture.of([expert])) for expert in (one, two)]
    assert ends[0] != pytest.approx(ends[1], abs=1e-3)
    assert [path.points[0].loss, path.points[2].loss] == pytest.approx(ends, abs=1e-5)
    assert path.points[1].loss == pytest.approx(loss_of(scorer, Mixture.of([one, two])), abs=1e-5)
    assert (path.start, path.end) == ("film", "other")
    back = evaluate_path(scorer, two, one, ROWS, "accuracy", num_points=3)
    assert [point.loss for point in back.points] == pytest.approx(
        [point.loss for point in path.points][::-1], abs=1e-5
    )


def test_the_path_is_the_same_through_the_layer_cache(tiny) -> None:
    one, two = (make_expert(tiny, seed=seed, sites=["encoder.layer.1.*"]) for seed in (1, 2))
    plain = evaluate_path(scorer_of(tiny, one), one, two, ROWS, "accuracy", num_points=3)
    with tiny.cached_below(sorted(one.sites)):
        cached = evaluate_path(scorer_of(tiny, one), one, two, ROWS, "accuracy", num_points=3)
    assert [point.loss for point in cached.points] == pytest.approx(
        [point.loss for point in plain.points], abs=1e-5
    )


def test_no_barrier_between_an_expert_and_itself(tiny) -> None:
    one = make_expert(tiny, seed=1)
    assert evaluate_path(
        scorer_of(tiny, one), one, one, ROWS, "accuracy", num_points=5
    ).barrier == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize(
    ("losses", "barrier", "best"),
    [
        ((1.0, 2.5, 2.0), 1.0, 0),
        ((1.0, 1.2, 2.0), 0.0, 0),
        ((1.0, 1.5, 2.0), 0.0, 0),
        ((3, 1, 2), 0.0, 1),
    ],
)
def test_the_barrier_is_measured_from_the_line_between_the_ends(
    losses: tuple[float, ...], barrier: float, best: int
) -> None:
    points = tuple(PathPoint(t, loss, 0.5) for t, loss in zip((0, 0.5, 1), losses, strict=True))
    path = ExpertPath("a", "b", "accuracy", points)
    assert path.barrier == pytest.approx(barrier)
    assert path.best == points[best]
    assert path.to_json()["points"][0] == {"t": 0, "loss": losses[0], "accuracy": 0.5}


def test_an_impossible_path_is_refused(tiny) -> None:
    one = make_expert(tiny, seed=1)
    with pytest.raises(UsageError, match="needs three points and a row, found 2 and 6"):
        evaluate_path(scorer_of(tiny, one), one, one, ROWS, "accuracy", num_points=2)
    with pytest.raises(ExpertError, match=r"different kinds \(adapter, lora\)"):
        evaluate_path(scorer_of(tiny, one), one, replace(one, kind="adapter"), ROWS, "accuracy")
