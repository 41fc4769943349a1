"""Rows, their keys, and their candidates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pidep.adapters.mixture import Mixture, attached
from pidep.backbones.choices import Choices
from pidep.errors import BackboneError, ImageError
from pidep.inputs.row import Row, image_key, picture_digest, row_key, size_key, texts_only
from tests.conftest import make_expert, picture, png


def test_a_key_tells_rows_apart_by_what_is_encoded(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(0))
    rows = [
        "a",
        "b",
        Row("a", picture(0)),
        Row("a", picture(1)),
        Row("b", picture(0)),
        Row("a", png(0)),
        Row("a", tmp_path / "a.png"),
    ]
    assert len({row_key(row) for row in rows}) == len(rows)
    assert row_key("a") == row_key(Row("a", candidates=("x", "y"), where="somewhere"))
    assert image_key({"bytes": png(0), "path": None}) == image_key(png(0))
    before = image_key(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes(png(1) + b" ")
    assert image_key(tmp_path / "a.png") != before


def test_a_picture_has_one_digest_whatever_it_came_in(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(0))
    found = {
        picture_digest(source, where="x")
        for source in (picture(0), png(0), tmp_path / "a.png", str(tmp_path / "a.png"))
    }
    assert len(found) == 1
    assert picture_digest(png(1), where="x") not in found
    with pytest.raises(ImageError, match="row 7: expected an encoded image"):
        picture_digest(b"", where="row 7")


def test_rows_are_sorted_by_size_images_last() -> None:
    rows = [Row("", b"x"), "long text", "a", Row("ab", b"x")]
    assert sorted(rows, key=size_key) == [rows[2], rows[1], rows[0], rows[3]]


def test_a_text_backbone_refuses_images(tiny: Any) -> None:
    assert texts_only(["a", Row("b")], backbone="tiny") == ["a", "b"]
    for call in (tiny.encode, tiny.embed, tiny.prepare):
        with pytest.raises(
            BackboneError,
            match=(
                r"row 2: has an image, and backbone .* reads text only; use `backbone=pidep-mini`"
            ),
        ):
            call(["good", Row("film", picture(0))], max_length=8)


def test_choices_are_the_bare_backbones_whatever_is_attached(mini: Any) -> None:
    rows = [
        Row("good", candidates=("good film", Row(image=picture(0)))),
        Row(image=picture(1), candidates=("a", "the", "very")),
        "bad",
    ]
    labels = mini.encode(["positive", "negative"], max_length=8)
    choices = Choices(mini, labels, logit_scale=1.0)
    choices.learn(rows)
    with attached(mini.model, Mixture.of([make_expert(mini)])):
        choices.learn(rows)  # nothing is new
        embeddings = mini.encode(rows, max_length=8)
    found = choices.cosines(embeddings, rows)
    assert found.shape == (3, 3)
    for row, expected in enumerate(
        (["good film", Row(image=picture(0))], ["a", "the", "very"], ["positive", "negative"])
    ):
        torch.testing.assert_close(
            found[row, : len(expected)],
            mini.encode(expected, max_length=8) @ embeddings[row],
            atol=1e-6,
            rtol=1e-5,
        )
        assert torch.isinf(found[row, len(expected) :]).all()
    assert choices.cosines(embeddings[2:], rows[2:]).shape == (
        1,
        2,
    )  # no row has candidates of its own


def test_candidates_learn_through_gradients(mini: Any) -> None:
    rows = [Row("good", candidates=("good film", "bad film"))]
    choices = Choices(mini, torch.zeros(0, 16), logit_scale=1.0)
    choices.learn(rows)
    embeddings = torch.nn.functional.normalize(torch.ones(1, 16, requires_grad=True), dim=1)
    loss = torch.nn.functional.cross_entropy(
        20 * choices.cosines(embeddings, rows), torch.tensor([1])
    )
    loss.backward()  # tensors from inference mode would refuse gradients
