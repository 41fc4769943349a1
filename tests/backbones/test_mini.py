"""One encoder for texts, images and both.

Text rows are embedded as before, images count, and experts act on the shared transformer.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from pidep.adapters.kinds import KINDS
from pidep.adapters.mixture import Mixture, attached, find_sites, fresh
from pidep.backbones.mini import Mini
from pidep.errors import BackboneError, ImageError
from pidep.gallery.backbones import load_mini
from pidep.gallery.icons.catalog import catalog
from pidep.gallery.icons.draw import draw
from pidep.inputs.row import Row
from tests.conftest import picture

LENGTH = 12
TEXTS = ["good film", "the bad film was very awful", "a great film"]


def mixed() -> list[str | Row]:
    return [
        TEXTS[0],
        Row(image=picture(0)),
        Row(TEXTS[1], picture(1)),
        Row(TEXTS[2]),
        Row(TEXTS[0], picture(0)),
    ]


def test_rows_of_text_are_embedded_as_the_text_backbone_does(mini: Mini, tiny: Any) -> None:
    expected = tiny.encode(TEXTS, max_length=LENGTH)
    assert torch.equal(mini.encode(TEXTS, max_length=LENGTH), expected)
    assert torch.equal(mini.encode([Row(text) for text in TEXTS], max_length=LENGTH), expected)
    beside = mini.embed([*TEXTS, Row(image=picture(0))], max_length=LENGTH)[
        :3
    ]  # images elsewhere in the batch do not matter
    torch.testing.assert_close(beside, expected, atol=1e-6, rtol=1e-5)


def test_a_row_does_not_depend_on_its_batch(mini: Mini) -> None:
    rows = mixed()
    together = mini.encode(rows, max_length=LENGTH)
    alone = torch.cat([mini.encode([row], max_length=LENGTH) for row in rows])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(
        mini.encode(rows, max_length=LENGTH, batch_size=2), together, atol=1e-6, rtol=1e-5
    )
    torch.testing.assert_close(together.norm(dim=1), torch.ones(len(rows)))


def test_the_image_the_words_and_the_places_count(mini: Mini) -> None:
    turned = np.ascontiguousarray(np.rot90(picture(0)))
    rows: list[str | Row] = [
        Row("good film", picture(0)), Row("good film", picture(1)), Row("bad film", picture(0)),
        Row("good film", turned), Row("good film"), Row(image=picture(0)),
    ]  # fmt: skip
    found = mini.encode(rows, max_length=LENGTH)
    distance = torch.cdist(found, found) + torch.eye(len(rows))
    assert distance.min() > 1e-4


def test_wrong_rows_are_named_by_their_number_in_any_order_of_work(mini: Mini) -> None:
    rows: list[str | Row] = ["the film was very very good", Row(image=b""), "bad"]
    with pytest.raises(ImageError, match="row 2: expected an encoded image, found 0 bytes"):
        mini.encode(rows, max_length=LENGTH, batch_size=1)
    with pytest.raises(
        BackboneError, match="row 3: expected a text, an image or both, found neither"
    ):
        mini.encode(["good", "bad film", Row(" ")], max_length=LENGTH, batch_size=1)


def test_training_and_serving_see_the_same_pixels_whatever_the_source(
    mini: Mini, tmp_path: Path
) -> None:
    out = io.BytesIO()
    Image.fromarray(picture(3)).save(out, "PNG")
    (tmp_path / "a.png").write_bytes(out.getvalue())
    sources = [
        picture(3),
        out.getvalue(),
        tmp_path / "a.png",
        {"bytes": out.getvalue(), "path": None},
    ]
    found = mini.encode([Row(image=source) for source in sources], max_length=LENGTH)
    assert torch.equal(found, found[:1].expand_as(found))


def test_some_of_an_images_places_are_where_they_were(mini: Mini) -> None:
    batch = mini.prepare([Row(image=picture(0))], max_length=LENGTH)
    tokens, mask, places = batch["visual"], batch["visual_mask"], torch.tensor([3, 1])
    ours, swapped = [3, 1, 4], [1, 3, 4]  # the last vector bypasses the transformer
    words = (batch["input_ids"], batch["attention_mask"])
    every = mini.forward(*words, tokens, mask, places=torch.arange(4))
    torch.testing.assert_close(every, mini.forward(**batch))
    some = mini.forward(*words, tokens[:, ours], mask[:, :3], places=places)
    turned = mini.forward(*words, tokens[:, swapped], mask[:, :3], places=torch.tensor([1, 3]))
    torch.testing.assert_close(some, turned)
    assert (some - mini.forward(*words, tokens[:, ours], mask[:, :3])).abs().max() > 1e-4


def test_the_bypassing_vector_is_shared_among_words_and_seen_by_none(mini: Mini) -> None:
    batch = mini.prepare([Row("good film", picture(0)), "bad"], max_length=LENGTH)
    words, visual, mask = (
        (batch["input_ids"], batch["attention_mask"]),
        batch["visual"],
        batch["visual_mask"],
    )
    assert visual.shape == (2, 5, 16)
    assert mask.tolist() == [[1] * 5, [0] * 5]
    without = visual.clone()
    without[:, -1] = 0.0
    shown = mask * torch.tensor([1, 1, 1, 1, 0])
    seen = torch.cat([words[1], shown], 1)
    states = mini.last_states(words[0], seen, without)
    sums = (states * seen.unsqueeze(-1)).sum(1) + 4 * visual[:, -1] * 2 / words[1].sum(
        1, keepdim=True
    )
    torch.testing.assert_close(mini.forward(**batch), nn.functional.normalize(sums, dim=1))
    moved = (mini.forward(*words, without, mask) - mini.forward(**batch)).norm(dim=1)
    assert moved[0] > 0.05
    assert moved[1] == 0.0


def test_nothing_to_encode(mini: Mini) -> None:
    assert mini.encode([], max_length=LENGTH).shape == (0, 16)


def test_many_images_go_through_the_stem_in_parts(mini: Mini) -> None:
    size = mini.preprocess.size
    pixels = torch.randn(40, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = mini.connector(*mini.stem(pixels))
    seen: list[int] = []
    hook = mini.stem.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    try:
        found = mini.visual(pixels)
    finally:
        hook.remove()
    assert seen == [20, 20]
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def test_images_seen_before_are_not_computed_again(mini: Mini) -> None:
    rows = mixed()
    expected = mini.encode(rows, max_length=LENGTH)
    before = mini.stem.calls
    with mini.cached_images():
        for _ in range(2):
            torch.testing.assert_close(mini.encode(rows, max_length=LENGTH), expected)
        assert mini.stem.calls - before == 2  # pictures 0 and 1
    mini.encode(rows, max_length=LENGTH)
    assert mini.stem.calls - before == 5


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_kind_of_expert_acts_on_every_row_and_learns(mini: Mini, kind: str) -> None:
    rows = mixed()
    bare = mini.encode(rows, max_length=LENGTH)
    sites = find_sites(mini.model, ("*",), kind=kind)
    mixture = Mixture([fresh(mini.model, sites, kind=kind, rank=2)], [1.0], kind=kind)
    for parameter in mixture.expert_parameters():
        nn.init.normal_(parameter, std=0.5)
    with mini.cached_images(), attached(mini.model, mixture):
        acting = mini.encode(rows, max_length=LENGTH)
        loss = mini.embed(rows, max_length=LENGTH)[:, 0].sum()
        loss.backward()  # the cached images come from `encode` and must be usable here
    assert ((acting - bare).norm(dim=1) > 1e-3).all()
    gradients = [parameter.grad for parameter in mixture.expert_parameters()]
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients)
    assert torch.equal(mini.encode(rows, max_length=LENGTH), bare)


def test_an_expert_of_the_text_backbone_fits(mini: Mini, tiny: Any) -> None:
    for kind in KINDS:
        assert find_sites(mini.model, ("*",), kind=kind) == find_sites(
            tiny.model, ("*",), kind=kind
        )


def test_it_has_everything_that_a_text_encoder_has(mini: Mini, tiny: Any) -> None:
    used = (
        "name",
        "model",
        "digest",
        "hidden_size",
        "max_positions",
        "tokenizer_json",
        "forward",
        "embed",
        "encode",
        "cached_below",
    )
    assert all(hasattr(mini, name) and hasattr(tiny, name) for name in used)
    expected = mini.encode(mixed(), max_length=LENGTH)
    with mini.cached_below(find_sites(mini.model, ("encoder.layer.1.*",), kind="lora")):
        for _ in range(2):
            torch.testing.assert_close(mini.encode(mixed(), max_length=LENGTH), expected)


@pytest.mark.slow
def test_the_shipped_backbone() -> None:
    mini = load_mini()
    assert mini.digest.startswith("sha256:")
    assert load_mini().digest == mini.digest
    names = ["anchor", "camera", "umbrella", "airplane"]
    icons = {icon.name: icon for icon in catalog("material")}
    asked = mini.encode([Row(image=draw(icons[name], size=128)) for name in names], max_length=16)
    assert (asked @ mini.encode(names, max_length=16).T).argmax(1).tolist() == [0, 1, 2, 3]
    rows: list[str | Row] = [
        "an anchor",
        Row(image=np.full((20, 30), 255, np.uint8)),
        Row("an anchor", np.zeros((9, 9), np.uint8)),
    ]
    found = mini.encode(rows, max_length=16)
    torch.testing.assert_close(
        found[:1], mini.text.encode(["an anchor"], max_length=16), atol=1e-5, rtol=1e-4
    )
    assert found.isfinite().all()
