from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pidep.adapters.mixture import Mixture, find_sites, fresh
from pidep.interpolation.guard import folds_of, guard, trust
from pidep.interpolation.interpolate import InterpolateSettings, _Candidates, _Learner, interpolate, tuned_own
from pidep.tasks.data import Split
from pidep.training.loop import Diverged, Schedule, Scorer, fit, predict_logits
from tests.conftest import make_expert

ROWS = Split(
    ["the film was good", "awful", "a very bad film", "great film", "good good", "the bad film", "a great", "awful bad"], [1, 0, 0, 1] * 2
)
SCHEDULE = Schedule("test", steps=3, batch_size=4, warmup=0.1, weight_decay=0.01, eval_every=3, patience=2, seed=0, fingerprint="")


@pytest.fixture
def parts(tiny):
    experts = [make_expert(tiny, name=name, seed=seed) for seed, name in enumerate(("target", "one", "two"))]
    return Scorer(tiny, torch.from_numpy(experts[0].label_embeddings), 20.0, 12), experts[0], experts[1:]


def run(parts, policy: str, **more):
    scorer, own, helpers = parts
    settings = InterpolateSettings(SCHEDULE, policy=policy, own_learning_rate=1e-2, **more)
    return interpolate(scorer, own, helpers, ROWS, None, settings, train_own=lambda _rows, _harder: own, similarities=[0.5, 0.25])


@given(st.lists(st.integers(0, 2), min_size=6, max_size=40), st.integers(2, 5), st.integers(0, 9))
def test_folds_hold_every_row_once_and_every_class_evenly(labels: list[int], count: int, seed: int) -> None:
    folds = folds_of(labels, count=count, seed=seed)
    assert sorted(row for fold in folds for row in fold) == list(range(len(labels)))
    assert len(folds) >= 2
    assert all(folds)
    for label in set(labels):
        sizes = [sum(labels[row] == label for row in fold) for fold in folds]
        assert max(sizes) - min(sizes) <= 1


def test_auto_mixes_and_says_why(parts) -> None:
    found = run(parts, "auto")
    assert found.decision.rows == len(ROWS.labels)
    assert set(found.decision.losses) == {"own_expert", "uniform", "in_context", "mixture"}
    assert found.decision.why
    assert found.decision.chosen == "mixture"
    assert found.experts == ("target", "target (in context)", "one", "two")
    assert np.allclose([sum(alpha) for alpha in found.mixture.alphas().values()], 1)


def in_context(scorer, own, helpers) -> Mixture:
    """The own expert learned inside the mixture."""
    settings = InterpolateSettings(SCHEDULE, own_learning_rate=1e-1)
    return _Learner(scorer, tuple(helpers), settings, lambda _rows, _harder: own).learn(["in_context"], own, ROWS)[0].learned["in_context"]


def test_in_context_leaves_the_helpers_as_they_are(parts) -> None:
    scorer, own, helpers = parts
    learned = in_context(scorer, own, helpers)
    for index, helper in enumerate(helpers, 1):
        for site, tensors in learned.part(index).items():
            assert all(np.array_equal(value, helper.sites[site][name]) for name, value in tensors.items())
    assert any(np.abs(tensors["lora_B"]).max() > 0 for tensors in learned.part(0).values())


@pytest.mark.parametrize("kind", ["adapter", "prefix", "bitfit"])
def test_every_kind_is_learned_in_context(tiny, parts, kind: str) -> None:
    scorer, own, _ = parts
    rng = np.random.default_rng(0)
    experts = []
    for name in ("target", "one"):
        sites = fresh(tiny.model, find_sites(tiny.model, kind=kind), kind=kind, size=2)
        noisy = {
            site: {key: (value + rng.normal(0, 0.1, value.shape)).astype(np.float32) for key, value in t.items()}
            for site, t in sites.items()
        }
        experts.append(replace(own, name=name, kind=kind, scaling=1.0, sites=noisy))
    found = interpolate(
        scorer, experts[0], experts[1:], ROWS, None, InterpolateSettings(SCHEDULE), train_own=lambda _rows, _harder: experts[0]
    )
    assert predict_logits(scorer, ROWS.rows, found.mixture).isfinite().all()
    inner = in_context(scorer, experts[0], experts[1:])
    assert all(np.array_equal(value, experts[1].sites[site][key]) for site, t in inner.part(1).items() for key, value in t.items())


def adapters(tiny, own) -> list:
    """Three random adapters."""
    start = fresh(tiny.model, find_sites(tiny.model, kind="adapter"), kind="adapter", size=2)
    rng = np.random.default_rng(3)
    drawn = [
        {site: {key: rng.normal(0, 0.2, value.shape).astype(np.float32) for key, value in part.items()} for site, part in start.items()}
        for _ in range(3)
    ]
    return [replace(own, name=name, kind="adapter", scaling=1.0, sites=sites) for name, sites in zip("abc", drawn, strict=True)]


@pytest.mark.parametrize("name", ["own_expert", "uniform", "in_context"])
@torch.no_grad()
def test_all_weight_on_one_candidate_is_that_candidate_of_adapters(parts, name: str) -> None:
    scorer, lora, _ = parts
    own, *helpers = adapters(scorer.backbone, lora)
    inner = Mixture.of([adapters(scorer.backbone, lora)[2], *helpers], on_outputs=True)
    for logits in inner.alpha_parameters():
        logits.copy_(torch.tensor([0.2, -0.5, 0.9]))
    uniform = Mixture.of([own, *helpers], on_outputs=True)
    whole = {"own_expert": Mixture.of([own]), "uniform": uniform, "in_context": inner}[name]
    weights = dict.fromkeys(("own_expert", "uniform", "in_context"), 0.0) | {name: 1.0}
    average = _Candidates(own, {"in_context": inner}).average(helpers, weights)
    torch.testing.assert_close(predict_logits(scorer, ROWS.rows, average), predict_logits(scorer, ROWS.rows, whole), atol=2e-3, rtol=0)
    if name == "uniform":
        on_parameters = predict_logits(scorer, ROWS.rows, Mixture.of([own, *helpers]))
        assert (predict_logits(scorer, ROWS.rows, average) - on_parameters).abs().max() > 2e-3


def test_auto_mixes_adapters_on_outputs(parts) -> None:
    scorer, lora, _ = parts
    own, *helpers = adapters(scorer.backbone, lora)
    found = interpolate(scorer, own, helpers, ROWS, None, InterpolateSettings(SCHEDULE), train_own=lambda _rows, _harder: own)
    assert found.decision.chosen == "mixture"
    folded = found.mixture.folded()
    assert {len(tensors["down"]) for tensors in folded.values()} == {8}  # own, own in context, two helpers
    saved = replace(own, sites=folded)
    torch.testing.assert_close(
        predict_logits(scorer, ROWS.rows, Mixture.of([saved])), predict_logits(scorer, ROWS.rows, found.mixture), atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("name", ["own_expert", "uniform", "in_context"])
def test_all_weight_on_one_candidate_is_that_candidate(parts, name: str) -> None:
    scorer, own, helpers = parts
    inner = Mixture.of([make_expert(scorer.backbone, seed=9), *helpers])
    with torch.no_grad():
        for logits in inner.alpha_parameters():
            logits.copy_(torch.tensor([0.2, -0.5, 0.9]))
    whole = {"own_expert": Mixture.of([own]), "uniform": Mixture.of([own, *helpers]), "in_context": inner}[name]
    weights = dict.fromkeys(("own_expert", "uniform", "in_context"), 0.0) | {name: 1.0}
    average = _Candidates(own, {"in_context": inner}).average(helpers, weights)
    torch.testing.assert_close(predict_logits(scorer, ROWS.rows, average), predict_logits(scorer, ROWS.rows, whole), atol=2e-3, rtol=0)


WEIGHTS = {"own_expert": 0.2, "uniform": 0.4, "in_context": 0.4}


def test_the_guard_falls_back_on_clear_evidence_only() -> None:
    noise = torch.randn(400, generator=torch.Generator().manual_seed(0)).abs()
    losses = {"own_expert": noise, "uniform": noise + 0.2, "in_context": noise + 0.1}
    clear = guard(losses | {"mixture": noise + 0.1 + 0.1 * noise}, WEIGHTS, believed=trust(400))
    assert clear.chosen == "own_expert"
    assert "the average is clearly worse: held-out loss" in clear.why
    few = {name: loss[:8] for name, loss in losses.items()}
    assert guard(few | {"mixture": few["own_expert"] + 0.1 * noise[:8]}, WEIGHTS, believed=trust(8)).chosen == "mixture"
    assert guard(losses | {"mixture": noise - 0.1}, WEIGHTS, believed=trust(400)).chosen == "mixture"


@pytest.mark.parametrize("name", ["joint", "joint_harder", "own_expert_harder"])
def test_the_guard_takes_what_was_trained_otherwise_on_clear_evidence_only(name: str) -> None:
    noise = torch.randn(400, generator=torch.Generator().manual_seed(0)).abs()
    losses = {"own_expert": noise + 0.3, "uniform": noise + 0.2, "in_context": noise + 0.1, name: noise}
    worse = noise + 0.1 + 0.1 * noise
    believed = trust(400)
    assert guard(losses | {"mixture": worse}, WEIGHTS, believed=believed).chosen == name
    assert guard(losses | {"mixture": worse}, WEIGHTS, rival=worse, believed=believed).chosen == name
    assert guard(losses | {"mixture": worse}, WEIGHTS, rival=worse, believed=believed, lead=1e3).chosen == "mixture"
    rival = noise + 0.01 * torch.randn(400, generator=torch.Generator().manual_seed(2))
    assert guard(losses | {"mixture": worse}, WEIGHTS, rival=rival, believed=believed).chosen == "mixture"
    assert guard(losses | {"mixture": worse + 0.4}, WEIGHTS, rival=rival, believed=believed).chosen == "uniform"
    assert guard(losses | {"mixture": worse + 0.4}, WEIGHTS, rival=worse, believed=believed).chosen == name


def test_of_several_clear_choices_the_guard_takes_the_best() -> None:
    noise = torch.randn(400, generator=torch.Generator().manual_seed(0)).abs()
    losses = {"mixture": noise + 0.5 + 0.1 * noise, "own_expert": noise + 0.4, "uniform": noise + 0.6}
    trained = {"joint": noise + 0.3, "own_expert_harder": noise + 0.2, "joint_harder": noise + 0.1}
    assert guard(losses | trained, {}, believed=trust(400)).chosen == "joint_harder"
    assert guard(losses | trained | {"own_expert_harder": noise}, {}, believed=trust(400)).chosen == "own_expert_harder"
    assert guard(losses | trained, {}, believed=trust(400), lead=1e3).chosen == "own_expert"


TRAINED = {"joint", "own_expert_harder", "joint_harder"}


@pytest.mark.parametrize("count", [4, 8])
def test_experts_are_trained_together_and_harder_where_rows_suffice(parts, monkeypatch, count: int) -> None:
    monkeypatch.setattr("pidep.interpolation.interpolate._ENOUGH_ROWS", 6)
    scorer, own, helpers = parts
    settings = InterpolateSettings(SCHEDULE, own_learning_rate=1e-2)
    rows = ROWS.take(range(count))
    found = interpolate(scorer, own, helpers, rows, None, settings, train_own=lambda _rows, _harder: own)
    assert set(found.decision.losses) == {"own_expert", "uniform", "in_context", "mixture"} | (TRAINED if count == 8 else set())


def test_rows_held_back_judge_joint_training_at_the_usual_rate_only(parts, monkeypatch) -> None:
    monkeypatch.setattr("pidep.interpolation.interpolate._ENOUGH_ROWS", 6)
    scorer, own, helpers = parts
    settings = InterpolateSettings(SCHEDULE, own_learning_rate=1e-2)
    found = interpolate(scorer, own, helpers, ROWS, ROWS, settings, train_own=lambda _rows, _harder: own)
    assert set(found.decision.losses) == {"own_expert", "uniform", "in_context", "mixture", "joint"}
    assert set(found.reports) == {"in_context", "joint"}


def choose(monkeypatch, wanted: str) -> None:
    """Let the guard see no loss at all of one choice."""
    monkeypatch.setattr("pidep.interpolation.interpolate._ENOUGH_ROWS", 6)

    def biased(losses, *more, **options):
        return guard(losses | {name: loss * 0 for name, loss in losses.items() if name == wanted}, *more, **options)

    monkeypatch.setattr("pidep.interpolation.interpolate.guard", biased)


@pytest.mark.parametrize("name", ["joint", "joint_harder"])
def test_joint_training_that_is_clearly_better_is_what_comes_out(parts, monkeypatch, name: str) -> None:
    choose(monkeypatch, name)
    found = run(parts, "auto")
    assert found.decision.chosen == name
    assert found.experts == ("target", "one", "two")
    assert set(found.reports) == {name}
    _, own, helpers = parts
    for index, expert in enumerate([own, *helpers]):
        assert any(not np.array_equal(t["lora_B"], expert.sites[site]["lora_B"]) for site, t in found.mixture.part(index).items())


def test_joint_training_harder_moves_further(parts, monkeypatch) -> None:
    _, own, _ = parts
    moved = []
    for name in ("joint", "joint_harder"):
        choose(monkeypatch, name)
        part = run(parts, "auto").mixture.part(0)
        moved.append(sum(np.abs(t["lora_B"] - own.sites[site]["lora_B"]).sum() for site, t in part.items()))
    assert moved[1] > 2 * moved[0]


def test_an_own_expert_trained_harder_on_all_rows_is_what_comes_out(parts, monkeypatch) -> None:
    choose(monkeypatch, "own_expert_harder")
    scorer, own, helpers = parts
    asked: list[tuple[int, float]] = []

    def train_own(rows: Split, harder: float):
        asked.append((len(rows.labels), harder))
        return make_expert(scorer.backbone, name="target", seed=7 if harder > 1 else 0)

    found = interpolate(scorer, own, helpers, ROWS, None, InterpolateSettings(SCHEDULE, folds=2), train_own=train_own)
    assert asked == [(4, 1.0), (4, 4.0), (4, 1.0), (4, 4.0), (8, 4.0)]
    assert found.experts == ("target (harder)",)
    assert found.reports == {}
    expected = make_expert(scorer.backbone, seed=7).sites
    assert all(np.array_equal(t["lora_B"], expected[site]["lora_B"]) for site, t in found.mixture.part(0).items())


def test_what_diverges_when_trained_harder_is_left_out(parts, monkeypatch) -> None:
    monkeypatch.setattr("pidep.interpolation.interpolate._ENOUGH_ROWS", 6)
    scorer, own, helpers = parts

    def train_own(rows: Split, harder: float):
        if harder > 1:
            raise Diverged("the loss became nan at step 2")
        return own

    settings = InterpolateSettings(SCHEDULE, own_learning_rate=1e-2)
    found = interpolate(scorer, own, helpers, ROWS, None, settings, train_own=train_own)
    assert set(found.decision.losses) == {"own_expert", "uniform", "in_context", "mixture", "joint", "joint_harder"}
    expert, decision = tuned_own(scorer, own, ROWS, settings, train_own=train_own)
    assert expert is own
    assert "diverged" in decision.why


@pytest.mark.parametrize("name", ["own_expert_harder", "joint_harder"])
def test_what_diverges_on_all_rows_only_is_not_what_comes_out(parts, monkeypatch, name: str) -> None:
    choose(monkeypatch, name)
    scorer, own, helpers = parts

    def train_own(rows: Split, harder: float):
        if harder > 1 and len(rows.labels) == len(ROWS.labels):
            raise Diverged("the loss became nan at step 2")
        return own

    def fitted(*arguments, **options):
        if len(arguments[3].labels) == len(ROWS.labels) and "joint_harder" in arguments[5].fingerprint:
            raise Diverged("the loss became nan at step 2")
        return fit(*arguments, **options)

    monkeypatch.setattr("pidep.interpolation.interpolate.fit", fitted)
    settings = InterpolateSettings(SCHEDULE, own_learning_rate=1e-2)
    found = interpolate(scorer, own, helpers, ROWS, None, settings, train_own=train_own)
    assert found.decision.chosen != name
    assert name not in found.decision.losses
    if name == "own_expert_harder":
        expert, decision = tuned_own(scorer, own, ROWS, settings, train_own=train_own)
        assert (expert, decision.chosen) == (own, "own_expert")
        assert decision.why == "training diverged at a higher rate, on all rows"


@pytest.mark.parametrize(("better", "chosen"), [(True, "own_expert_harder"), (False, "own_expert")])
def test_without_helpers_folds_say_how_hard_to_train(parts, monkeypatch, better: bool, chosen: str) -> None:
    if better:
        choose(monkeypatch, "own_expert_harder")
    monkeypatch.setattr("pidep.interpolation.interpolate._ENOUGH_ROWS", 6)
    scorer, own, _ = parts
    harder = make_expert(scorer.backbone, name="target", seed=7)
    settings = InterpolateSettings(SCHEDULE)
    expert, decision = tuned_own(scorer, own, ROWS, settings, train_own=lambda _rows, rate: harder if rate > 1 and better else own)
    assert decision.chosen == chosen
    assert set(decision.losses) == {"own_expert", "own_expert_harder"}
    assert expert.digest == (harder if better else own).digest
    few, why = tuned_own(scorer, own, ROWS.take(range(4)), settings, train_own=lambda _rows, _rate: harder)
    assert (few.digest, why.chosen, why.losses) == (own.digest, "own_expert", {})


def test_frozen_moves_alpha_only_and_uniform_nothing(parts) -> None:
    _, own, helpers = parts
    frozen = run(parts, "frozen").mixture
    for index, expert in enumerate([own, *helpers]):
        assert all(np.array_equal(t[name], expert.sites[site][name]) for site, t in frozen.part(index).items() for name in t)
    assert any(not np.allclose(alpha, 1 / 3) for alpha in frozen.alphas().values())
    assert all(np.allclose(alpha, 1 / 3) for alpha in run(parts, "uniform").mixture.alphas().values())
    assert any(not np.array_equal(t["lora_B"], own.sites[site]["lora_B"]) for site, t in run(parts, "free").mixture.part(0).items())


def test_alpha_can_start_from_the_similarities(parts) -> None:
    start = run(parts, "uniform", alpha_start="similarity").mixture.alphas()
    assert all(np.allclose(alpha, np.array([1, 0.5, 0.25]) / 1.75) for alpha in start.values())


@pytest.mark.parametrize("name", ["mixture", "joint", "joint_harder"])
def test_auto_resumes_what_it_learned(parts, tmp_path, monkeypatch, name: str) -> None:
    choose(monkeypatch, name)
    scorer, own, helpers = parts
    settings = InterpolateSettings(SCHEDULE, own_learning_rate=1e-2)
    steps: list[str] = []

    def again(*, resume: bool):
        steps.clear()
        return interpolate(
            scorer,
            own,
            helpers,
            ROWS,
            None,
            settings,
            train_own=lambda _rows, _harder: own,
            checkpoint=tmp_path / "checkpoint",
            resume=resume,
            on_step=lambda phase, step, total, loss: steps.append(phase),
        )

    first, count = again(resume=False), len(steps)
    second = again(resume=True)
    assert len(steps) == count - SCHEDULE.steps  # the folds are learned again, what was chosen is not
    assert first.decision == second.decision
    assert first.mixture.alphas() == second.mixture.alphas()
