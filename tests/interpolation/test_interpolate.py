import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from pidep.adapters.mixture import Mixture, find_sites, fresh
from pidep.interpolation.candidates import Candidates, CandidateTrainer
from pidep.interpolation.policies import interpolate
from pidep.interpolation.settings import InterpolateSettings
from pidep.training.scorer import predict_logits
from tests.conftest import make_expert
from tests.interpolation.small_run import ROWS, SCHEDULE, TRAINED, choose, run


def test_auto_mixes_and_says_why(parts) -> None:
    found = run(parts, "auto")
    assert found.decision.rows == len(ROWS.labels)
    assert set(found.decision.losses) == {"own_expert", "uniform", "in_context", "mixture"}
    assert found.decision.why
    reason = "needs at least 32 training rows, found 8"
    assert found.decision.left_out.items() >= dict.fromkeys(TRAINED, reason).items()


def test_the_shares_follow_from_the_recorded_losses(parts) -> None:
    found = run(parts, "auto").decision
    assert found.prior["own_expert"] == pytest.approx((8 / 72) ** 2)
    raw = {
        name: prior * math.exp(-found.evidence * found.losses[name])
        for name, prior in found.prior.items()
    }
    shares = {name: value / sum(raw.values()) for name, value in raw.items()}
    assert shares == pytest.approx(found.weights, abs=1e-3)


def test_the_average_has_two_own_experts(parts, monkeypatch) -> None:
    choose(monkeypatch, "mixture")
    found = run(parts, "auto")
    assert found.decision.chosen == "mixture"
    assert found.experts == ("target", "target (in context)", "one", "two")
    assert np.allclose([sum(alpha) for alpha in found.mixture.alphas().values()], 1)


def in_context(scorer, own, helpers) -> Mixture:
    """The own expert that was learned inside the mixture."""
    settings = InterpolateSettings(SCHEDULE, own_learning_rate=1e-1)
    return (
        CandidateTrainer(scorer, tuple(helpers), settings, lambda _rows, _factor: own)
        .train(["in_context"], own, ROWS)[0]
        .learned["in_context"]
    )


def test_in_context_leaves_the_helpers_as_they_are(parts) -> None:
    scorer, own, helpers = parts
    learned = in_context(scorer, own, helpers)
    for index, helper in enumerate(helpers, 1):
        for site, tensors in learned.part(index).items():
            assert all(
                np.array_equal(value, helper.sites[site][name]) for name, value in tensors.items()
            )
    assert any(np.abs(tensors["lora_B"]).max() > 0 for tensors in learned.part(0).values())


@pytest.mark.parametrize("kind", ["adapter", "prefix", "bitfit"])
def test_every_kind_is_learned_in_context(tiny, parts, kind: str) -> None:
    scorer, own, _ = parts
    rng = np.random.default_rng(0)
    experts = []
    for name in ("target", "one"):
        sites = fresh(tiny.model, find_sites(tiny.model, kind=kind), kind=kind, rank=2)
        noisy = {
            site: {
                key: (value + rng.normal(0, 0.1, value.shape)).astype(np.float32)
                for key, value in t.items()
            }
            for site, t in sites.items()
        }
        experts.append(replace(own, name=name, kind=kind, scaling=1.0, sites=noisy))
    found = interpolate(
        CandidateTrainer(
            scorer,
            tuple(experts[1:]),
            InterpolateSettings(SCHEDULE),
            lambda _rows, _factor: experts[0],
        ),
        experts[0],
        ROWS,
        None,
    )
    assert predict_logits(scorer, ROWS.rows, found.mixture).isfinite().all()
    inner = in_context(scorer, experts[0], experts[1:])
    assert all(
        np.array_equal(value, experts[1].sites[site][key])
        for site, t in inner.part(1).items()
        for key, value in t.items()
    )


def adapters(tiny, own) -> list:
    """Three random adapters."""
    start = fresh(tiny.model, find_sites(tiny.model, kind="adapter"), kind="adapter", rank=2)
    rng = np.random.default_rng(3)
    drawn = [
        {
            site: {
                key: rng.normal(0, 0.2, value.shape).astype(np.float32)
                for key, value in part.items()
            }
            for site, part in start.items()
        }
        for _ in range(3)
    ]
    return [
        replace(own, name=name, kind="adapter", scaling=1.0, sites=sites)
        for name, sites in zip("abc", drawn, strict=True)
    ]


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
    average = Candidates(own, {"in_context": inner}).average(helpers, weights)
    torch.testing.assert_close(
        predict_logits(scorer, ROWS.rows, average),
        predict_logits(scorer, ROWS.rows, whole),
        atol=2e-3,
        rtol=0,
    )


@torch.no_grad()
def test_adapters_mixed_on_outputs_are_not_those_mixed_on_parameters(parts) -> None:
    scorer, lora, _ = parts
    experts = adapters(scorer.backbone, lora)
    logits = [
        predict_logits(scorer, ROWS.rows, Mixture.of(experts, on_outputs=on_outputs))
        for on_outputs in (False, True)
    ]
    # The difference exceeds the tolerance of the test above, which could otherwise not tell them
    # apart.
    assert (logits[0] - logits[1]).abs().max() > 2e-3


def test_auto_mixes_adapters_on_outputs(parts) -> None:
    scorer, lora, _ = parts
    own, *helpers = adapters(scorer.backbone, lora)
    found = interpolate(
        CandidateTrainer(
            scorer, tuple(helpers), InterpolateSettings(SCHEDULE), lambda _rows, _factor: own
        ),
        own,
        ROWS,
        None,
    )
    assert found.decision.chosen == "mixture"
    folded = found.mixture.folded()
    assert {len(tensors["down"]) for tensors in folded.values()} == {
        8
    }  # own expert, own expert in context, two helpers
    saved = replace(own, sites=folded)
    torch.testing.assert_close(
        predict_logits(scorer, ROWS.rows, Mixture.of([saved])),
        predict_logits(scorer, ROWS.rows, found.mixture),
        atol=1e-4,
        rtol=0,
    )


@pytest.mark.parametrize("name", ["own_expert", "uniform", "in_context"])
def test_all_weight_on_one_candidate_is_that_candidate(parts, name: str) -> None:
    scorer, own, helpers = parts
    inner = Mixture.of([make_expert(scorer.backbone, seed=9), *helpers])
    with torch.no_grad():
        for logits in inner.alpha_parameters():
            logits.copy_(torch.tensor([0.2, -0.5, 0.9]))
    whole = {
        "own_expert": Mixture.of([own]),
        "uniform": Mixture.of([own, *helpers]),
        "in_context": inner,
    }[name]
    weights = dict.fromkeys(("own_expert", "uniform", "in_context"), 0.0) | {name: 1.0}
    average = Candidates(own, {"in_context": inner}).average(helpers, weights)
    torch.testing.assert_close(
        predict_logits(scorer, ROWS.rows, average),
        predict_logits(scorer, ROWS.rows, whole),
        atol=2e-3,
        rtol=0,
    )


def test_frozen_moves_alpha_only_and_uniform_nothing(parts) -> None:
    _, own, helpers = parts
    frozen = run(parts, "frozen").mixture
    for index, expert in enumerate([own, *helpers]):
        assert all(
            np.array_equal(t[name], expert.sites[site][name])
            for site, t in frozen.part(index).items()
            for name in t
        )
    assert any(not np.allclose(alpha, 1 / 3) for alpha in frozen.alphas().values())
    assert all(
        np.allclose(alpha, 1 / 3) for alpha in run(parts, "uniform").mixture.alphas().values()
    )
    assert any(
        not np.array_equal(t["lora_B"], own.sites[site]["lora_B"])
        for site, t in run(parts, "free").mixture.part(0).items()
    )


def test_alpha_can_start_from_the_similarities(parts) -> None:
    start = run(parts, "uniform", alpha_start="similarity").mixture.alphas()
    assert all(np.allclose(alpha, np.array([1, 0.5, 0.25]) / 1.75) for alpha in start.values())


@pytest.mark.parametrize("name", ["mixture", "joint", "joint_high_rate"])
def test_auto_resumes_what_it_learned(parts, tmp_path, monkeypatch, name: str) -> None:
    choose(monkeypatch, name)
    scorer, own, helpers = parts
    settings = InterpolateSettings(SCHEDULE, own_learning_rate=1e-2, folds=2)
    steps: list[str] = []

    def again(*, resume: bool):
        steps.clear()
        return interpolate(
            CandidateTrainer(
                scorer,
                tuple(helpers),
                settings,
                lambda _rows, _factor: own,
                checkpoint=tmp_path / "checkpoint",
                resume=resume,
                on_step=lambda phase, step, total, loss: steps.append(phase),
            ),
            own,
            ROWS,
            None,
        )

    first, count = again(resume=False), len(steps)
    second = again(resume=True)
    assert (
        len(steps) == count - SCHEDULE.steps
    )  # folds are trained again, the chosen candidate is not
    assert first.decision == second.decision
    assert first.mixture.alphas() == second.mixture.alphas()
