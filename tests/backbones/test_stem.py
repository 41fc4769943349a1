"""The visual stem equals the package's own network, with batch norms folded in."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pidep.backbones import stem as stem_module
from pidep.backbones.stem import EfficientNetLite0, load_stem
from pidep.errors import BackboneError


@pytest.fixture(scope="module")
def stem() -> EfficientNetLite0:
    return load_stem()


@pytest.mark.parametrize(("size", "last", "middle"), [(64, 2, 4), (96, 3, 6), (50, 2, 4)])
def test_shapes(stem: EfficientNetLite0, size: int, last: int, middle: int) -> None:
    with torch.inference_mode():
        top, half, summary = stem(torch.zeros(2, 3, size, size))
    assert summary.shape == (2, stem.channels_summary)
    assert summary.isfinite().all()
    assert top.shape == (2, stem.channels, last, last)
    assert half.shape == (2, stem.channels_middle, middle, middle)


def test_the_summary_is_of_all_depths(stem: EfficientNetLite0) -> None:
    maps = {
        number: torch.randn(2, count, side, side)
        for number, count, side in [
            (2, 24, 32),
            (4, 40, 16),
            (7, 80, 8),
            (10, 112, 8),
            (14, 192, 4),
            (15, 320, 4),
        ]
    }
    found = stem_module.summary_of(maps)
    torch.testing.assert_close(found[:, :320], maps[15].mean((2, 3)))
    torch.testing.assert_close(found[:, 640:664], maps[2].mean((2, 3)))
    quarters = torch.stack(
        [maps[7][:, :, i : i + 4, j : j + 4].amax((2, 3)) for i in (0, 4) for j in (0, 4)], 2
    ).flatten(1)
    torch.testing.assert_close(found[:, -320:], quarters)
    assert found.shape[1] == stem.channels_summary
    assert stem_module.quarters(torch.arange(9.0).reshape(1, 1, 3, 3)).tolist() == [
        [4.0, 5.0, 7.0, 8.0]
    ]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_it_computes_what_the_package_computes(
    stem: EfficientNetLite0, capsys: pytest.CaptureFixture[str]
) -> None:
    import efficientnet_lite_pytorch as package

    theirs = package.EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=str(stem_module.packaged_weights())
    ).eval()
    pixels = torch.randn(
        1, 3, 224, 224, generator=torch.Generator().manual_seed(0)
    )  # the package's padding is fixed for 224 pixels
    with torch.inference_mode():
        expected, found = theirs.extract_features(pixels), stem(pixels)[0]
    assert expected.max() > 3.0
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_nothing_is_trained_and_nothing_changes_in_training_mode(stem: EfficientNetLite0) -> None:
    assert not any(parameter.requires_grad for parameter in stem.parameters())
    pixels = torch.randn(2, 3, 32, 32)
    before = stem(pixels)[0]
    torch.testing.assert_close(stem.train()(pixels)[0], before, atol=0, rtol=0)
    stem.eval()


def test_other_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stem_module, "SHA256", "0" * 64)
    with pytest.raises(BackboneError, match=r"SHA-256 5793.*, expected 000.*; reinstall"):
        load_stem()
    monkeypatch.setattr(stem_module, "FILE", "models/none.pth")
    with pytest.raises(BackboneError, match=r"none\.pth: no such file"):
        load_stem()
    monkeypatch.setattr(stem_module, "PACKAGE", "no_such_package")
    with pytest.raises(BackboneError, match="pip install 'pidep\\[vision\\]'"):
        load_stem()
