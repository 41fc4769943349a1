"""A mixture by reference: what is refused, its digest, and its weights in a bank."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pidep.errors import ExpertError
from pidep.experts.folder import Expert
from pidep.experts.mixed import MixedExpert, parts_of, weights_of
from tests.serving.experts import small_expert

PARTS = (small_expert(name="a", seed=0), small_expert(name="b", seed=1))
HEAD = replace(PARTS[0], name="both", sites={})
SITES = list(PARTS[0].sites)
HALVES = dict.fromkeys(SITES, (0.25, 0.75))
MIXED = MixedExpert(HEAD, PARTS, HALVES)


def test_weights_follow_the_sites_of_the_bank() -> None:
    weights = weights_of(MIXED, ["elsewhere", *SITES])
    assert weights.dtype == np.float32
    assert weights[:, 0].tolist() == [1, 1]  # no part has a tensor there
    assert weights[:, 1].tolist() == [0.25, 0.75]
    assert weights_of(PARTS[0], SITES).tolist() == [[1.0] * len(SITES)]
    assert parts_of(MIXED) == PARTS
    assert parts_of(PARTS[0]) == PARTS[:1]


@pytest.mark.parametrize(
    "change",
    [
        lambda one: MixedExpert(one.head, one.parts[::-1], one.alphas),
        lambda one: MixedExpert(one.head, one.parts, dict.fromkeys(SITES, (0.5, 0.5))),
        lambda one: MixedExpert(replace(one.head, labels=("no", "yes")), one.parts, one.alphas),
    ],
    ids=["parts", "shares", "labels"],
)
def test_the_digest_covers_what_decides_an_answer(
    change: Callable[[MixedExpert], MixedExpert],
) -> None:
    assert change(MIXED).digest != MIXED.digest
    named = MixedExpert(replace(HEAD, name="other", metrics={"x": 1}), PARTS, HALVES)
    assert named.digest == MIXED.digest


def prompt(tokens: int) -> Expert:
    sites = {"embeddings": {"prompt": np.ones((tokens, 4), np.float32)}}
    return replace(PARTS[0], kind="prompt", scaling=1.0, sites=sites)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((HEAD, (), {}), "has no sites"),
        ((HEAD, PARTS, {}), "has shares for 0 sites, its parts act on"),
        ((HEAD, PARTS, dict.fromkeys(SITES, (1.0,))), "expected 2 of at least 0 and of sum 1"),
        ((HEAD, PARTS, dict.fromkeys(SITES, (0.5, 0.6))), "of sum 1"),
        ((HEAD, PARTS, dict.fromkeys(SITES, (-0.5, 1.5))), "of at least 0"),
        ((HEAD, PARTS, {site: (float("nan"), 1.0) for site in SITES}), "of sum 1"),
        ((HEAD, (PARTS[0], prompt(2)), HALVES), "differ in kind"),
        ((HEAD, (PARTS[0], replace(PARTS[1], backbone_digest="x")), HALVES), "differ in backbone"),
        (
            (replace(HEAD, kind="prompt"), (prompt(2), prompt(3)), {"embeddings": (0.5, 0.5)}),
            "parts have 2 and 3 virtual tokens; train them with one `rank`",
        ),
    ],
)
def test_what_is_no_mixture_is_refused(arguments: Any, message: str) -> None:
    with pytest.raises(ExpertError, match=message):
        MixedExpert(*arguments)
