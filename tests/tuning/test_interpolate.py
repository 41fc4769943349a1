from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pidep.experts.mixture import Mixture, find_sites, fresh
from pidep.tasks.data import Split
from pidep.tuning.interpolate import InterpolateSettings, _Candidates, _guard, _learn, folds_of, interpolate, trust
from pidep.tuning.trainer import Schedule, Scorer, predict_logits
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
    return interpolate(scorer, own, helpers, ROWS, None, settings, train_own=lambda _: own, similarities=[0.5, 0.25])


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
    if found.decision.chosen == "mixture":
        assert found.experts == ("target", "target (in context)", "one", "two")
        assert np.allclose([sum(alpha) for alpha in found.mixture.alphas().values()], 1)


def test_in_context_leaves_the_helpers_as_they_are(parts) -> None:
    scorer, own, helpers = parts
    settings = InterpolateSettings(SCHEDULE, own_learning_rate=1e-1)
    learned = _learn(scorer, own, helpers, ROWS, None, settings, None)[0].in_context
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
    found = interpolate(scorer, experts[0], experts[1:], ROWS, None, InterpolateSettings(SCHEDULE), train_own=lambda _: experts[0])
    assert predict_logits(scorer, ROWS.rows, found.mixture).isfinite().all()
    inner = _learn(scorer, experts[0], experts[1:], ROWS, None, InterpolateSettings(SCHEDULE, own_learning_rate=1e-1), None)[0].in_context
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
    average = _Candidates(own, inner).average(helpers, weights)
    torch.testing.assert_close(predict_logits(scorer, ROWS.rows, average), predict_logits(scorer, ROWS.rows, whole), atol=2e-3, rtol=0)
    if name == "uniform":
        on_parameters = predict_logits(scorer, ROWS.rows, Mixture.of([own, *helpers]))
        assert (predict_logits(scorer, ROWS.rows, average) - on_parameters).abs().max() > 2e-3


def test_auto_mixes_adapters_on_outputs(parts) -> None:
    scorer, lora, _ = parts
    own, *helpers = adapters(scorer.backbone, lora)
    found = interpolate(scorer, own, helpers, ROWS, None, InterpolateSettings(SCHEDULE), train_own=lambda _: own)
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
    average = _Candidates(own, inner).average(helpers, weights)
    torch.testing.assert_close(predict_logits(scorer, ROWS.rows, average), predict_logits(scorer, ROWS.rows, whole), atol=2e-3, rtol=0)


def test_the_guard_falls_back_on_clear_evidence_only() -> None:
    weights = {"own_expert": 0.2, "uniform": 0.4, "in_context": 0.4}
    noise = torch.randn(400, generator=torch.Generator().manual_seed(0)).abs()
    losses = {"own_expert": noise, "uniform": noise + 0.2, "in_context": noise + 0.1}
    clear = _guard(losses | {"mixture": noise + 0.1 + 0.1 * noise}, weights, {}, believed=trust(400))
    assert clear.chosen == "own_expert"
    assert "clearly worse: held-out loss" in clear.why
    few = {name: loss[:8] for name, loss in losses.items()}
    assert _guard(few | {"mixture": few["own_expert"] + 0.1 * noise[:8]}, weights, {}, believed=trust(8)).chosen == "mixture"
    assert _guard(losses | {"mixture": noise - 0.1}, weights, {}, believed=trust(400)).chosen == "mixture"


def test_the_guard_takes_joint_training_on_clear_evidence_only() -> None:
    weights = {"own_expert": 0.2, "uniform": 0.4, "in_context": 0.4}
    noise = torch.randn(400, generator=torch.Generator().manual_seed(0)).abs()
    losses = {"own_expert": noise + 0.3, "uniform": noise + 0.2, "in_context": noise + 0.1, "joint": noise}
    worse = noise + 0.1 + 0.1 * noise
    assert _guard(losses | {"mixture": worse}, weights, {"joint": worse}, believed=trust(400)).chosen == "joint"
    assert _guard(losses | {"mixture": worse}, weights, {"joint": worse}, believed=trust(400), lead=1e3).chosen == "mixture"
    rival = noise + 0.01 * torch.randn(400, generator=torch.Generator().manual_seed(2))
    assert _guard(losses | {"mixture": worse}, weights, {"joint": rival}, believed=trust(400)).chosen == "mixture"
    assert _guard(losses | {"mixture": worse + 0.4}, weights, {"joint": rival}, believed=trust(400)).chosen == "uniform"
    assert _guard(losses | {"mixture": worse + 0.4}, weights, {"joint": worse}, believed=trust(400)).chosen == "joint"


@pytest.mark.parametrize("count", [4, 8])
def test_all_experts_are_trained_together_where_rows_suffice(parts, monkeypatch, count: int) -> None:
    monkeypatch.setattr("pidep.tuning.interpolate._ENOUGH_ROWS", 6)
    scorer, own, helpers = parts
    settings = InterpolateSettings(SCHEDULE, own_learning_rate=1e-2)
    rows = ROWS.take(range(count))
    found = interpolate(scorer, own, helpers, rows, None, settings, train_own=lambda _: own)
    assert ("joint" in found.decision.losses) == ("joint" in found.reports) == (count == 8)


def test_joint_training_that_is_clearly_better_is_what_comes_out(parts, monkeypatch) -> None:
    monkeypatch.setattr("pidep.tuning.interpolate._ENOUGH_ROWS", 6)
    guard = _guard
    monkeypatch.setattr(
        "pidep.tuning.interpolate._guard",
        lambda losses, *more, **options: guard(losses | {"joint": losses["joint"] * 0}, *more, **options),
    )
    found = run(parts, "auto")
    assert found.decision.chosen == "joint"
    assert found.experts == ("target", "one", "two")
    _, own, helpers = parts
    for index, expert in enumerate([own, *helpers]):
        assert any(not np.array_equal(t["lora_B"], expert.sites[site]["lora_B"]) for site, t in found.mixture.part(index).items())


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


@pytest.mark.parametrize(("enough", "learned"), [(128, 1), (6, 2)])
def test_auto_resumes_what_it_learned(parts, tmp_path, monkeypatch, enough: int, learned: int) -> None:
    monkeypatch.setattr("pidep.tuning.interpolate._ENOUGH_ROWS", enough)
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
            train_own=lambda _: own,
            checkpoint=tmp_path / "checkpoint",
            resume=resume,
            on_step=lambda phase, step, total, loss: steps.append(phase),
        )

    first, count = again(resume=False), len(steps)
    second = again(resume=True)
    assert len(steps) == count - learned * SCHEDULE.steps  # the folds are learned again, the mixtures are not
    assert first.decision == second.decision
    assert first.mixture.alphas() == second.mixture.alphas()
