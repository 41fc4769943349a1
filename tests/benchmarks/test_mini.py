"""The connector's training on a tiny backbone: it learns, depends on the seed alone, and reports
recall.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.bench_mini import ask, claims_of, parts_of, recalls
from pidep.backbones.connector import Connector
from pidep.backbones.mini import Mini
from pidep.gallery.icons.catalog import Icon
from pidep.gallery.mini_training import (
    Data,
    Settings,
    fit_past,
    left_out_errors,
    loss_of,
    train,
    whitening,
)
from pidep.gallery.suite.icons import SHARES
from pidep.inputs.images import Preprocess

NAMES = [
    "good film",
    "bad film",
    "the great",
    "very awful",
    "a film",
    "positive",
    "negative",
    "was great",
]
SETTINGS = Settings(steps=60, batch=12, places=3, warmup=5, learning_rate=1e-2, dropout=0.0)


@pytest.fixture
def data(tiny: Any) -> Data:
    """Eight names with six noisy pictures each; each name has its own feature. Three icons of every
    name are training icons.
    """
    rng = np.random.default_rng(0)
    names = [number % len(NAMES) for number in range(48)]
    features = rng.normal(0, 0.1, (48, 4, 24)).astype(np.float16)
    for row, name in enumerate(names):
        features[row, :, name] += 2.0
    embedded = torch.stack(
        [
            tiny.encode([phrase.format(name) for name in NAMES], max_length=12)
            for phrase in ("{}", "a {}")
        ]
    )
    part = ["train" if row < 24 else "validation" if row < 36 else "test" for row in range(48)]
    icons = [Icon("material", "default", str(row), Path("x")) for row in range(48)]
    summary = torch.from_numpy(features).float().mean(1)
    return Data(
        icons,
        part,
        [NAMES[name] for name in names],
        features,
        summary,
        embedded,
        torch.tensor(names),
    )


@pytest.fixture
def mini(tiny: Any) -> Mini:
    connector = Connector(
        channels=8, channels_middle=4, channels_summary=24, width=16, num_tokens=4, axes=8
    )
    return Mini("mini", tiny, torch.nn.Identity(), connector, Preprocess(size=64), "")


def test_it_learns_and_the_seed_decides_everything(mini: Mini, data: Data) -> None:
    losses = train(mini, data, SETTINGS)
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:5])
    found = recalls(mini, data, ask(data, "test", per_base=True))
    assert found["image_to_text_recall_at_1"] > 60.0
    first = {name: value.clone() for name, value in mini.connector.state_dict().items()}
    torch.manual_seed(99)
    assert train(mini, data, SETTINGS) == losses
    assert all(
        torch.equal(value, first[name]) for name, value in mini.connector.state_dict().items()
    )
    assert not any(parameter.grad is not None for parameter in mini.model.parameters())


def test_the_bypassing_part_is_fitted_to_names_of_training_icons(mini: Mini, data: Data) -> None:
    fit_past(mini, data, SETTINGS)
    first = mini.connector.past.vectors.clone()
    assert len(first) == len(data.rows("train"))
    found = parts_of(mini, data, ask(data, "test", per_base=True))
    assert (
        found["past_alone"]["image_to_text_recall_at_1"]
        > 60.0
        > found["transformer_alone"]["image_to_text_recall_at_1"]
    )
    assert found["length"]["past"] == pytest.approx(
        SETTINGS.past * found["length"]["transformer"], rel=0.3
    )
    torch.manual_seed(99)
    fit_past(mini, data, SETTINGS)
    assert torch.equal(mini.connector.past.vectors, first)


def test_errors_of_groups_left_out_are_those_of_regressions_without_them() -> None:
    torch.manual_seed(0)
    points, names, ridge = (
        torch.randn(12, 3).double(),
        torch.randn(12, 5).double(),
        torch.diag(torch.rand(12).double() + 0.1),
    )
    group = torch.tensor([0, 1, 2, 0, 3, 3, 1, 0, 2, 2, 3, 1])
    near = torch.exp(-torch.cdist(points, points))
    factor = torch.linalg.cholesky(near + ridge)
    errors = left_out_errors(factor, torch.cholesky_solve(names, factor), group)
    for number in range(4):
        out, kept = group == number, group != number
        found = near[out][:, kept] @ torch.linalg.solve((near + ridge)[kept][:, kept], names[kept])
        torch.testing.assert_close(errors[out], names[out] - found)


def test_directions_that_pictures_do_not_tell_count_less() -> None:
    errors = torch.randn(500, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor(
        [3.0, 1.0, 0.1]
    )
    found = whitening(errors, Settings(whitening=0.5, whitening_floor=0.0))
    flat = (errors @ found).T @ (errors @ found)
    torch.testing.assert_close(flat / flat[0, 0], torch.eye(3), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(whitening(errors, Settings(whitening=0.0)), torch.eye(3))


def test_icons_of_one_name_are_no_negatives_of_each_other() -> None:
    names = torch.nn.functional.normalize(
        torch.randn(5, 8, generator=torch.Generator().manual_seed(0)), dim=1
    )
    target = torch.tensor([0, 0, 1])
    found, scale = names[target], torch.tensor(200.0)
    # with the twin as a negative, the loss would be log 2
    assert loss_of(found, names, target, scale, 0.0) < 1e-3
    assert loss_of(found.roll(1, 0), names, target, scale, 0.0) > 1.0


def test_icons_are_asked_once_per_base_name(data: Data) -> None:
    once = ask(data, "test", per_base=True)
    assert len(once) == len({data.group[row] for row in once}) == 8
    assert {data.part[row] for row in once} == {"test"}
    assert ask(data, "test", per_base=True) == once
    assert sum(SHARES.values()) == pytest.approx(1.0)


def test_a_claim_is_met_or_shown_as_not_met() -> None:
    found = {"image_to_text_recall_at_1": 25.0, "image_to_text_recall_at_10": 59.75}
    claims = claims_of(
        {**found, "text_to_image_recall_at_1": 30.0, "text_to_image_recall_at_10": 70.0}
    )
    assert [claim["met"] for claim in claims] == [True, False, True, True]
    assert "among 400: recall@10" in claims[1]["claim"]
