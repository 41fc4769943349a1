"""The connector: each token comes from the right place, and the file matches its record."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pidep.backbones.connector import Connector, as_kept, gathered, read_connector, write_connector
from pidep.errors import BackboneError


def made(seed: int = 0, width: int = 16) -> Connector:
    torch.manual_seed(seed)
    connector = Connector(
        channels=8,
        channels_middle=4,
        channels_summary=6,
        width=width,
        num_tokens=4,
        axes=3,
        points=5,
    )
    torch.nn.init.normal_(connector.place)
    for name in ("mean", "axes", "points", "vectors"):
        torch.nn.init.normal_(connector.past.get_buffer(name))
    connector.past.sharpness.fill_(0.5)
    return connector


def test_every_place_is_a_token_with_the_four_finer_places_over_it() -> None:
    last = torch.arange(4.0).reshape(1, 1, 2, 2)
    middle = torch.arange(16.0).reshape(1, 1, 4, 4)
    expected = [[0, 0, 1, 4, 5], [1, 2, 3, 6, 7], [2, 8, 9, 12, 13], [3, 10, 11, 14, 15]]
    assert gathered(last, middle)[0].tolist() == expected
    connector, summary = made(), torch.randn(3, 6)
    found = connector(torch.randn(3, 8, 2, 2), torch.randn(3, 4, 4, 4), summary)
    assert found.shape == (3, 5, 16)
    torch.testing.assert_close(found[:, 4], connector.past(summary))


def test_the_bypassing_vector_is_a_sum_of_gaussians() -> None:
    past = made().past
    past.deviation.fill_(2.0)
    past.size.fill_(7.0)
    past.enough.fill_(1e-9)
    summary = torch.randn(4, 6)
    summary[:3] *= 0.1
    summary[3] = 1e4  # an outlier is clipped
    standard = ((summary - past.mean) / 2.0).clamp(-5.0, 5.0).double()
    near = torch.exp(-0.5 * torch.cdist(standard @ past.axes.double(), past.points.double()) ** 2)
    expected = 7.0 * torch.nn.functional.normalize(near @ past.vectors.double(), dim=1)
    torch.testing.assert_close(past(summary).double(), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(past.near(past.points).diagonal(), torch.ones(5))


def test_a_picture_far_from_every_point_is_shorter_and_keeps_its_direction() -> None:
    past = made().past
    past.size.fill_(7.0)
    past.enough.fill_(0.1)
    summary = torch.linspace(0.0, 4.0, 9).unsqueeze(1) * torch.ones(6)
    found, nearest = past(summary), past.near(past.turned(summary)).amax(1)
    assert nearest.min() < 0.1 < nearest.max()
    torch.testing.assert_close(found.norm(dim=1), 7.0 * (nearest / 0.1).clamp(max=1.0).square())
    past.enough.fill_(1e-30)
    torch.testing.assert_close(
        torch.nn.functional.cosine_similarity(found, past(summary))[nearest > 1e-9],
        torch.ones(9)[nearest > 1e-9],
    )


def test_an_unfitted_part_gives_zeros() -> None:
    empty = Connector(
        channels=8, channels_middle=4, channels_summary=6, width=16, num_tokens=4, axes=3
    )
    assert torch.equal(empty.past(torch.ones(2, 6)), torch.zeros(2, 16))


def test_save_then_load_is_the_identity_at_half_precision(tmp_path: Path) -> None:
    saved, loaded = made(1), made(2)
    digest = write_connector(tmp_path / "c.safetensors", saved, {"stem": "sha256:a"})
    assert (
        read_connector(loaded, tmp_path / "c.safetensors", expected={"stem": "sha256:a"}) == digest
    )
    for name, value in saved.state_dict().items():
        found = loaded.state_dict()[name]
        if name == "past.points":  # 127 steps up to the largest value of each column
            assert (
                (found - value).abs() <= 0.51 * value.abs().amax(0) / 127.0 + 1e-3 * value.abs()
            ).all()
        else:
            torch.testing.assert_close(found, value.half().float(), atol=0, rtol=0)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    torch.testing.assert_close(loaded.past.points, as_kept(saved.past.points), atol=0, rtol=0)
    assert write_connector(tmp_path / "d.safetensors", loaded, {}) == digest


def test_as_many_points_are_read_as_there_are(tmp_path: Path) -> None:
    saved = made(1)
    write_connector(tmp_path / "c.safetensors", saved, {})
    empty = Connector(
        channels=8, channels_middle=4, channels_summary=6, width=16, num_tokens=4, axes=3
    )
    read_connector(empty, tmp_path / "c.safetensors", expected={})
    assert empty.past.points.shape == (5, 3)
    assert empty.past.vectors.shape == (5, 16)
    torch.testing.assert_close(
        empty.past(torch.ones(2, 6)), saved.past(torch.ones(2, 6)), atol=0.05, rtol=0.05
    )


def test_what_does_not_belong_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    with pytest.raises(BackboneError, match=r"c\.json: not readable .*make mini-backbone"):
        read_connector(made(), path, expected={})
    write_connector(path, made(), {"stem": "sha256:a"})
    with pytest.raises(
        BackboneError, match="trained with stem sha256:a, found sha256:b; run: make mini-backbone"
    ):
        read_connector(made(), path, expected={"stem": "sha256:b"})
    with pytest.raises(BackboneError, match="does not fit"):
        read_connector(made(width=8), path, expected={})
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(BackboneError, match=r"digest sha256:.*, expected sha256:"):
        read_connector(made(), path, expected={})
    path.unlink()
    with pytest.raises(BackboneError, match=r"c\.safetensors: not readable \(No such file"):
        read_connector(made(), path, expected={})
    path.with_suffix(".json").write_text(json.dumps([1]))
    with pytest.raises(BackboneError, match="expected a JSON object, found list"):
        read_connector(made(), path, expected={})
