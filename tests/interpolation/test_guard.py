"""The guard replaces the average on clear evidence only."""

import pytest
import torch

from pidep.interpolation.guard import guard
from pidep.interpolation.held_out import confidence_in

WEIGHTS = {"own_expert": 0.2, "uniform": 0.4, "in_context": 0.4}


def test_the_guard_falls_back_on_clear_evidence_only() -> None:
    noise = torch.randn(400, generator=torch.Generator().manual_seed(0)).abs()
    losses = {"own_expert": noise, "uniform": noise + 0.2, "in_context": noise + 0.1}
    clear = guard(
        losses | {"mixture": noise + 0.1 + 0.1 * noise}, WEIGHTS, confidence=confidence_in(400)
    )
    assert clear.chosen == "own_expert"
    assert "the average is clearly worse: held-out loss" in clear.why
    few = {name: loss[:8] for name, loss in losses.items()}
    assert (
        guard(
            few | {"mixture": few["own_expert"] + 0.1 * noise[:8]},
            WEIGHTS,
            confidence=confidence_in(8),
        ).chosen
        == "mixture"
    )
    assert (
        guard(losses | {"mixture": noise - 0.1}, WEIGHTS, confidence=confidence_in(400)).chosen
        == "mixture"
    )


@pytest.mark.parametrize("name", ["joint", "joint_high_rate", "own_expert_high_rate"])
def test_the_guard_takes_a_trained_candidate_on_clear_evidence_only(name: str) -> None:
    noise = torch.randn(400, generator=torch.Generator().manual_seed(0)).abs()
    losses = {
        "own_expert": noise + 0.3,
        "uniform": noise + 0.2,
        "in_context": noise + 0.1,
        name: noise,
    }
    worse = noise + 0.1 + 0.1 * noise
    confidence = confidence_in(400)
    assert guard(losses | {"mixture": worse}, WEIGHTS, confidence=confidence).chosen == name
    assert (
        guard(losses | {"mixture": worse}, WEIGHTS, baseline=worse, confidence=confidence).chosen
        == name
    )
    assert (
        guard(
            losses | {"mixture": worse}, WEIGHTS, baseline=worse, confidence=confidence, margin=1e3
        ).chosen
        == "mixture"
    )
    baseline = noise + 0.01 * torch.randn(400, generator=torch.Generator().manual_seed(2))
    assert (
        guard(losses | {"mixture": worse}, WEIGHTS, baseline=baseline, confidence=confidence).chosen
        == "mixture"
    )
    assert (
        guard(
            losses | {"mixture": worse + 0.4}, WEIGHTS, baseline=baseline, confidence=confidence
        ).chosen
        == "uniform"
    )
    assert (
        guard(
            losses | {"mixture": worse + 0.4}, WEIGHTS, baseline=worse, confidence=confidence
        ).chosen
        == name
    )


def test_of_several_clear_choices_the_guard_takes_the_best() -> None:
    noise = torch.randn(400, generator=torch.Generator().manual_seed(0)).abs()
    losses = {
        "mixture": noise + 0.5 + 0.1 * noise,
        "own_expert": noise + 0.4,
        "uniform": noise + 0.6,
    }
    trained = {
        "joint": noise + 0.3,
        "own_expert_high_rate": noise + 0.2,
        "joint_high_rate": noise + 0.1,
    }
    assert guard(losses | trained, {}, confidence=confidence_in(400)).chosen == "joint_high_rate"
    assert (
        guard(
            losses | trained | {"own_expert_high_rate": noise}, {}, confidence=confidence_in(400)
        ).chosen
        == "own_expert_high_rate"
    )
    assert (
        guard(losses | trained, {}, confidence=confidence_in(400), margin=1e3).chosen
        == "own_expert"
    )
