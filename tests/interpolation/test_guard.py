"""The guard replaces the average on clear evidence only."""

import json
import re

import pytest
import torch

from pidep.interpolation.guard import CHOICES, Baseline, guard
from pidep.interpolation.held_out import confidence_in

WEIGHTS = {"own_expert": 0.2, "uniform": 0.4, "in_context": 0.4}


def test_the_guard_falls_back_on_clear_evidence_only() -> None:
    noise = torch.randn(400, generator=torch.Generator().manual_seed(0)).abs()
    losses = {"own_expert": noise, "uniform": noise + 0.2, "in_context": noise + 0.1}
    clear = guard(
        losses | {"mixture": noise + 0.1 + 0.1 * noise}, WEIGHTS, confidence=confidence_in(400)
    )
    assert clear.chosen == "own_expert"
    assert clear.why.startswith("the own expert is clearly better than the average: held-out loss")
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
        guard(
            losses | {"mixture": worse},
            WEIGHTS,
            baseline=Baseline("uniform", worse),
            confidence=confidence,
        ).chosen
        == name
    )
    assert (
        guard(
            losses | {"mixture": worse},
            WEIGHTS,
            baseline=Baseline("uniform", worse),
            confidence=confidence,
            margin=1e3,
        ).chosen
        == "mixture"
    )
    baseline = noise + 0.01 * torch.randn(400, generator=torch.Generator().manual_seed(2))
    assert (
        guard(
            losses | {"mixture": worse},
            WEIGHTS,
            baseline=Baseline("own_expert", baseline),
            confidence=confidence,
        ).chosen
        == "mixture"
    )
    assert (
        guard(
            losses | {"mixture": worse + 0.4},
            WEIGHTS,
            baseline=Baseline("own_expert", baseline),
            confidence=confidence,
        ).chosen
        == "uniform"
    )
    assert (
        guard(
            losses | {"mixture": worse + 0.4},
            WEIGHTS,
            baseline=Baseline("uniform", worse),
            confidence=confidence,
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


def figures(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"-?\d+\.\d{3}", text)]


@pytest.mark.parametrize(
    ("gain", "chosen", "words"),
    [
        (0.5, "joint", "joint training is clearly better than the own expert, the best of the"),
        (0.0005, "mixture", "no other candidate is clearly better; joint training comes nearest"),
        (-0.5, "mixture", "no other candidate is better than the one it is compared with; joint"),
    ],
)
def test_the_reason_quotes_the_two_candidates_that_were_compared(
    gain: float, chosen: str, words: str
) -> None:
    """The bar has a temperature of its own, so its loss is not that of the table."""
    noise = torch.randn(2, 100, generator=torch.Generator().manual_seed(0)).abs()
    losses = {"mixture": noise[0], "uniform": noise[0] + 0.9, "own_expert": noise[0] + 0.8}
    bar = Baseline("own_expert", noise[0] - 0.05)
    trained = {"joint": bar.losses - gain + 0.1 * (noise[1] - noise[1].mean())}
    found = guard(losses | trained, WEIGHTS, baseline=bar, confidence=confidence_in(100))
    assert found.chosen == chosen
    assert found.why.startswith(words)
    one = found.comparisons["joint"]
    assert one.against == "own_expert"
    assert one.lead == pytest.approx(gain, abs=1e-6)
    assert one.lead == pytest.approx(one.against_loss - one.loss, abs=1e-6)
    assert one.against_loss == pytest.approx(float(bar.losses.mean()))
    assert figures(found.why)[:2] == [round(one.loss, 3), round(one.against_loss, 3)]
    assert (one.needed is not None and one.lead > one.needed) == (chosen == "joint")


def test_every_candidate_is_compared_or_has_a_reason() -> None:
    noise = torch.randn(100, generator=torch.Generator().manual_seed(0)).abs()
    losses = {name: noise + 0.1 * at for at, name in enumerate(CHOICES)} | {"in_context": noise}
    found = guard(losses, WEIGHTS, confidence=confidence_in(100))
    assert {"mixture", *found.comparisons, *found.left_out} == losses.keys()
    assert found.left_out["uniform"] == "not compared: the own expert has the lower loss"
    assert found.left_out["in_context"] == "a part of the average, not a choice of its own"


def test_one_row_cannot_tell() -> None:
    found = guard(
        {"mixture": torch.ones(1), "own_expert": torch.zeros(1)}, {}, confidence=confidence_in(1)
    )
    assert found.chosen == "mixture"
    assert found.comparisons["own_expert"].needed is None
    figures_of = "held-out loss 0.000 against 1.000 of the average; one row cannot tell"
    assert found.why.endswith(figures_of)
    # JSON has no infinity, and the record must be one.
    json.dumps(found.to_json(), allow_nan=False)
