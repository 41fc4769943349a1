"""pidep's preprocessing gives the pixels of transformers' processors, or refuses their settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pidep.backbones.preprocessor_config import preprocess_of, read_preprocess
from pidep.errors import BackboneError
from tests.backbones.tiny_models import picture

BLIP = {"size": {"height": 24, "width": 24}}
FLORENCE = {
    "size": {"height": 24, "width": 24},
    "crop_size": {"height": 24, "width": 24},
    "do_center_crop": False,
}
CLIP = {
    "size": {"shortest_edge": 24},
    "crop_size": {"height": 24, "width": 24},
    "do_center_crop": True,
}


@pytest.mark.parametrize(
    ("processor", "options"), [("Blip", BLIP), ("CLIP", FLORENCE), ("CLIP", CLIP)]
)
@pytest.mark.parametrize("shape", [(48, 96, 3), (24, 24, 3), (100, 30, 3)])
def test_pixels_are_those_of_transformers(
    processor: str, options: dict[str, Any], shape: tuple[int, ...], tmp_path: Path
) -> None:
    import transformers

    theirs = getattr(transformers, f"{processor}ImageProcessorPil")(**options)
    theirs.save_pretrained(tmp_path)
    ours = read_preprocess(tmp_path)
    assert ours is not None
    ramp = np.linspace(0, 255, int(np.prod(shape))).reshape(shape).astype(np.uint8)
    expected = np.asarray(theirs(ramp, return_tensors="np")["pixel_values"])[0]
    # transformers rounds to bytes after scaling and crops afterwards. So pixels differ by up to one
    # level of 255 where proportions are kept.
    assert np.abs(ours.one(ramp) - expected).max() <= (
        1.5 if ours.fit == "crop" else 0.01
    ) * 2 / 255 / min(ours.std)


def test_both_files_are_read(tmp_path: Path) -> None:
    assert read_preprocess(tmp_path) is None
    values = {"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 1, 1], "size": 10}
    (tmp_path / "processor_config.json").write_text(
        json.dumps({"image_processor": values, "processor_class": "Florence2Processor"})
    )
    found = read_preprocess(tmp_path)
    assert found is not None
    assert (found.size, found.fit, found.mean) == (10, "stretch", (0.1, 0.2, 0.3))
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({**values, "size": 12, "do_normalize": False})
    )
    found = read_preprocess(tmp_path)
    assert found is not None
    assert (found.size, found.mean, found.std) == (12, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    assert found.one(picture(0)).shape == (3, 12, 12)


GOOD = {"size": 8, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"resample": 2},
            "here: resample is 2, expected 3: images are resized bicubically and scaled",
        ),
        ({"do_rescale": False}, "here: do_rescale is False, expected True"),
        ({"do_pad": True}, "do_pad is True, expected False"),
        ({"rescale_factor": 1.0}, "rescale_factor is 1.0, expected 1/255"),
        (
            {"size": {"height": 8, "width": 9}},
            r"size {'height': 8, 'width': 9} and crop_size None: expected a square",
        ),
        (
            {"size": {"shortest_edge": 8}},
            "and crop_size None: expected a square height and width, or a shortest_edge and a "
            "square",
        ),
        (
            {"size": {"shortest_edge": 8}, "do_center_crop": True, "crop_size": 9},
            "and crop_size 9: expected a square",
        ),
        ({"size": None}, "size None and crop_size None"),
        (
            {"image_mean": [0.5]},
            r"image_mean \[0.5\] and image_std .*: expected three numbers each",
        ),
        ({"image_std": None}, "image_std None: expected three numbers each"),
    ],
)
def test_unsupported_preprocessing_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(BackboneError, match=message):
        preprocess_of({**GOOD, **values}, where="here")


def test_a_damaged_file(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(
        BackboneError, match=r"backbone '.*': preprocessor_config.json cannot be read \("
    ):
        read_preprocess(tmp_path)
