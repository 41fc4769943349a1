"""The higher learning rate: chosen by held-out rows, and candidates that diverge."""

import numpy as np
import pytest

from pidep.interpolation.auto import tuned_own
from pidep.interpolation.candidates import CandidateTrainer
from pidep.interpolation.policies import interpolate
from pidep.interpolation.settings import InterpolateSettings
from pidep.tasks.data import Split
from pidep.training.loop import Diverged, fit
from tests.conftest import make_expert
from tests.interpolation.small_run import ROWS, SCHEDULE, TRAINED, choose, run


@pytest.mark.parametrize("count", [4, 8])
def test_joint_training_and_the_higher_rate_need_enough_rows(
    parts, monkeypatch, count: int
) -> None:
    monkeypatch.setattr("pidep.interpolation.candidates.ENOUGH_ROWS", 6)
    scorer, own, helpers = parts
    settings = InterpolateSettings(SCHEDULE, own_learning_rate=1e-2)
    rows = ROWS.take(range(count))
    found = interpolate(
        CandidateTrainer(scorer, tuple(helpers), settings, lambda _rows, _factor: own),
        own,
        rows,
        None,
    )
    assert set(found.decision.losses) == {"own_expert", "uniform", "in_context", "mixture"} | (
        TRAINED if count == 8 else set()
    )
    assert (found.decision.left_out.keys() >= TRAINED) == (count == 4)


def test_rows_held_back_judge_joint_training_at_the_usual_rate_only(parts, monkeypatch) -> None:
    monkeypatch.setattr("pidep.interpolation.candidates.ENOUGH_ROWS", 6)
    scorer, own, helpers = parts
    settings = InterpolateSettings(SCHEDULE, own_learning_rate=1e-2, folds=2)
    found = interpolate(
        CandidateTrainer(scorer, tuple(helpers), settings, lambda _rows, _factor: own),
        own,
        ROWS,
        ROWS,
    )
    assert set(found.decision.losses) == {"own_expert", "uniform", "in_context", "mixture", "joint"}
    assert set(found.reports) == {"in_context", "joint"}
    reason = "a high rate adds nothing where rows are held back"
    for name in ("own_expert_high_rate", "joint_high_rate"):
        assert found.decision.left_out[name] == reason


@pytest.mark.parametrize("name", ["joint", "joint_high_rate"])
def test_joint_training_that_is_clearly_better_is_chosen(parts, monkeypatch, name: str) -> None:
    choose(monkeypatch, name)
    found = run(parts, "auto")
    assert found.decision.chosen == name
    assert found.experts == ("target", "one", "two")
    assert set(found.reports) == {name}
    _, own, helpers = parts
    for index, expert in enumerate([own, *helpers]):
        assert any(
            not np.array_equal(t["lora_B"], expert.sites[site]["lora_B"])
            for site, t in found.mixture.part(index).items()
        )


def test_joint_training_at_the_higher_rate_moves_further(parts, monkeypatch) -> None:
    _, own, _ = parts
    moved = []
    for name in ("joint", "joint_high_rate"):
        choose(monkeypatch, name)
        part = run(parts, "auto").mixture.part(0)
        moved.append(
            sum(np.abs(t["lora_B"] - own.sites[site]["lora_B"]).sum() for site, t in part.items())
        )
    assert moved[1] > 2 * moved[0]


def test_an_own_expert_at_the_higher_rate_is_trained_on_all_rows(parts, monkeypatch) -> None:
    choose(monkeypatch, "own_expert_high_rate")
    scorer, own, helpers = parts
    asked: list[tuple[int, float]] = []

    def train_own(rows: Split, factor: float):
        asked.append((len(rows.labels), factor))
        return make_expert(scorer.backbone, name="target", seed=7 if factor > 1 else 0)

    found = interpolate(
        CandidateTrainer(scorer, tuple(helpers), InterpolateSettings(SCHEDULE, folds=2), train_own),
        own,
        ROWS,
        None,
    )
    assert asked == [(4, 1.0), (4, 4.0), (4, 1.0), (4, 4.0), (8, 4.0)]
    assert found.experts == ("target (high rate)",)
    assert found.reports == {}
    expected = make_expert(scorer.backbone, seed=7).sites
    assert all(
        np.array_equal(t["lora_B"], expected[site]["lora_B"])
        for site, t in found.mixture.part(0).items()
    )


def test_a_candidate_that_diverges_at_the_higher_rate_is_left_out(parts, monkeypatch) -> None:
    monkeypatch.setattr("pidep.interpolation.candidates.ENOUGH_ROWS", 6)
    scorer, own, helpers = parts

    def train_own(rows: Split, factor: float):
        if factor > 1:
            raise Diverged("the loss became nan at step 2")
        return own

    settings = InterpolateSettings(SCHEDULE, own_learning_rate=1e-2, folds=2)
    found = interpolate(
        CandidateTrainer(scorer, tuple(helpers), settings, train_own), own, ROWS, None
    )
    assert set(found.decision.losses) == {
        "own_expert",
        "uniform",
        "in_context",
        "mixture",
        "joint",
        "joint_high_rate",
    }
    reason = found.decision.left_out["own_expert_high_rate"]
    assert reason == "training diverged without one of the folds"
    expert, decision = tuned_own(scorer, own, ROWS, settings, train_own=train_own)
    assert expert is own
    assert "diverged" in decision.why


@pytest.mark.parametrize("name", ["own_expert_high_rate", "joint_high_rate"])
def test_a_candidate_that_diverges_on_all_rows_only_is_not_chosen(
    parts, monkeypatch, name: str
) -> None:
    choose(monkeypatch, name)
    scorer, own, helpers = parts

    def train_own(rows: Split, factor: float):
        if factor > 1 and len(rows.labels) == len(ROWS.labels):
            raise Diverged("the loss became nan at step 2")
        return own

    def fitted(scorer, mixture, groups, train, validation, schedule, **options):
        on_all_rows = len(train.labels) == len(ROWS.labels)
        if on_all_rows and "joint_high_rate" in schedule.fingerprint:
            raise Diverged("the loss became nan at step 2")
        return fit(scorer, mixture, groups, train, validation, schedule, **options)

    monkeypatch.setattr("pidep.interpolation.candidates.fit", fitted)
    settings = InterpolateSettings(SCHEDULE, own_learning_rate=1e-2, folds=2)
    found = interpolate(
        CandidateTrainer(scorer, tuple(helpers), settings, train_own), own, ROWS, None
    )
    assert found.decision.chosen != name
    assert name not in found.decision.losses
    assert found.decision.left_out[name] == "training diverged on all rows"


def test_an_own_expert_that_diverges_on_all_rows_only_stays_as_it_is(parts, monkeypatch) -> None:
    choose(monkeypatch, "own_expert_high_rate")
    scorer, own, _ = parts

    def train_own(rows: Split, factor: float):
        if factor > 1 and len(rows.labels) == len(ROWS.labels):
            raise Diverged("the loss became nan at step 2")
        return own

    settings = InterpolateSettings(SCHEDULE, own_learning_rate=1e-2, folds=2)
    expert, decision = tuned_own(scorer, own, ROWS, settings, train_own=train_own)
    assert (expert, decision.chosen) == (own, "own_expert")
    assert decision.why == "training diverged at the high rate, on all rows"


@pytest.mark.parametrize(
    ("better", "chosen"), [(True, "own_expert_high_rate"), (False, "own_expert")]
)
def test_without_helpers_folds_choose_the_learning_rate(
    parts, monkeypatch, better: bool, chosen: str
) -> None:
    if better:
        choose(monkeypatch, "own_expert_high_rate")
    monkeypatch.setattr("pidep.interpolation.candidates.ENOUGH_ROWS", 6)
    scorer, own, _ = parts
    other = make_expert(scorer.backbone, name="target", seed=7)
    settings = InterpolateSettings(SCHEDULE)
    expert, decision = tuned_own(
        scorer,
        own,
        ROWS,
        settings,
        train_own=lambda _rows, rate: other if rate > 1 and better else own,
    )
    assert decision.chosen == chosen
    assert set(decision.losses) == {"own_expert", "own_expert_high_rate"}
    assert expert.digest == (other if better else own).digest
    few, why = tuned_own(
        scorer, own, ROWS.take(range(4)), settings, train_own=lambda _rows, _rate: other
    )
    assert (few.digest, why.chosen, why.losses) == (own.digest, "own_expert", {})
