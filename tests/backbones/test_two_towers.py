"""CLIP and SigLIP as backbones: vectors of transformers, rows of both modalities, experts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pidep.adapters.mixture import Mixture, attached, find_sites, fresh
from pidep.backbones.load import load_backbone
from pidep.backbones.load_two_towers import is_two_towers
from pidep.backbones.two_towers import TwoTowers
from pidep.errors import BackboneError, ImageError
from pidep.inputs.row import Row
from tests.backbones.two_tower_models import SIZE, save_two_towers

TEXTS = ["a photo of the red cat", "dog", "not a big film was very good"]
MODELS = ("CLIP", "SigLIP")


@pytest.fixture(scope="module", params=MODELS)
def towers(request: Any, tmp_path_factory: pytest.TempPathFactory) -> TwoTowers:
    found = load_backbone(
        str(save_two_towers(tmp_path_factory.mktemp(request.param), request.param))
    )
    assert isinstance(found, TwoTowers)
    return found


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, 3), np.uint8)


def unit(vectors: Any) -> Tensor:
    return nn.functional.normalize(vectors, dim=-1)


def test_texts_have_the_vectors_of_transformers(towers: TwoTowers) -> None:
    ids = [towers.tokenize([text], max_length=12)[0][0].tolist() for text in TEXTS]
    if towers.padded_length is not None:
        assert all(len(row) == 12 for row in ids)  # SigLIP reads the last of twelve places
    want = [
        unit(towers.model.get_text_features(input_ids=torch.tensor([row])).pooler_output)[0]
        for row in ids
    ]
    found = towers.encode(TEXTS, max_length=12)
    torch.testing.assert_close(found, torch.stack(want), atol=1e-5, rtol=0)


def test_images_have_the_vectors_of_transformers(towers: TwoTowers) -> None:
    rows = [Row(image=picture(seed)) for seed in range(3)]
    pixels = np.stack([picture(seed).transpose(2, 0, 1) / 127.5 - 1 for seed in range(3)])
    with torch.no_grad():
        want = towers.model.get_image_features(
            pixel_values=torch.from_numpy(pixels.astype(np.float32))
        ).pooler_output
    found = towers.encode(rows, max_length=12)
    torch.testing.assert_close(found, unit(want), atol=1e-5, rtol=0)


def test_a_row_of_both_is_their_mean(towers: TwoTowers) -> None:
    text, image, both = towers.encode(
        ["red cat", Row(image=picture(0)), Row("red cat", picture(0))], max_length=12
    )
    torch.testing.assert_close(both, unit(text + image), atol=1e-5, rtol=0)


def test_a_row_in_a_batch_is_the_row_alone(towers: TwoTowers) -> None:
    rows = [*TEXTS, Row(image=picture(0)), Row("red", picture(1))]
    together = towers.encode(rows, max_length=6)
    alone = torch.cat([towers.encode([row], max_length=6) for row in rows])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_rows_that_cannot_be_read_are_named(towers: TwoTowers) -> None:
    with pytest.raises(BackboneError, match="row 3: expected a text, an image or both"):
        towers.encode(["a", "dog", Row("  ")], max_length=6)
    with pytest.raises(ImageError, match="row 2"):
        towers.encode(["a", Row(image=b"no image")], max_length=6)


@pytest.mark.parametrize("kind", ["lora", "adapter", "prefix", "bitfit"])
@pytest.mark.parametrize("tower", ["text", "image"])
def test_an_expert_acts_in_its_own_tower(towers: TwoTowers, kind: str, tower: str) -> None:
    own = next(one for one in towers.towers if one.name == tower)
    sites = [site for site in find_sites(towers.model, kind=kind) if site.startswith(own.prefixes)]
    start = fresh(towers.model, sites, kind=kind, rank=2)
    rng = np.random.default_rng(0)
    tensors = {
        site: {
            name: (array + rng.normal(0, 0.3, array.shape)).astype(np.float32)
            for name, array in found.items()
        }
        for site, found in start.items()
    }
    rows = ["red cat", Row(image=picture(0))]
    bare = towers.encode(rows, max_length=12)
    with attached(towers.model, Mixture([tensors], [1.0], kind=kind)):
        changed = towers.encode(rows, max_length=12)
    moved = (changed - bare).abs().amax(1) > 1e-3
    assert moved.tolist() == [tower == "text", tower == "image"]


def test_every_site_belongs_to_a_tower(towers: TwoTowers) -> None:
    prefixes = tuple(prefix for one in towers.towers for prefix in one.prefixes)
    assert all(site.startswith(prefixes) for site in find_sites(towers.model, kind="lora"))


def test_the_digest_covers_both_towers(tmp_path: Path) -> None:
    plain = load_backbone(str(save_two_towers(tmp_path / "plain")))
    same = load_backbone(str(save_two_towers(tmp_path / "same")))
    other = load_backbone(str(save_two_towers(tmp_path / "other", layer_norm_eps=1e-3)))
    assert plain.digest == same.digest != other.digest


def test_checkpoints_that_are_not_whole_are_refused(tmp_path: Path) -> None:
    folder = save_two_towers(tmp_path / "clip", closes=False)
    with pytest.raises(BackboneError, match="does not close a text with the end-of-text token 3"):
        load_backbone(str(folder))
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(BackboneError, match=r"has no preprocessor_config\.json"):
        load_backbone(str(folder))


def test_other_folders_are_no_two_towers(tiny_folder: Path, tmp_path: Path) -> None:
    assert not is_two_towers(tiny_folder)
    assert not is_two_towers(tmp_path)
