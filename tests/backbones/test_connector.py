"""The connector: tokens of the right places, and a file that is what its record says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pidep.backbones.connector import Connector, gathered, read_connector, write_connector
from pidep.errors import BackboneError


def made(seed: int = 0, width: int = 16) -> Connector:
    torch.manual_seed(seed)
    connector = Connector(channels=8, channels_middle=4, width=width, num_tokens=4)
    torch.nn.init.normal_(connector.place)
    return connector


def test_every_place_is_a_token_with_the_four_finer_places_over_it() -> None:
    last = torch.arange(4.0).reshape(1, 1, 2, 2)
    middle = torch.arange(16.0).reshape(1, 1, 4, 4)
    expected = [[0, 0, 1, 4, 5], [1, 2, 3, 6, 7], [2, 8, 9, 12, 13], [3, 10, 11, 14, 15]]
    assert gathered(last, middle)[0].tolist() == expected
    assert made()(torch.randn(3, 8, 2, 2), torch.randn(3, 4, 4, 4)).shape == (3, 4, 16)


def test_save_then_load_is_the_identity_at_half_precision(tmp_path: Path) -> None:
    saved, loaded = made(1), made(2)
    digest = write_connector(tmp_path / "c.safetensors", saved, {"stem": "sha256:a"})
    assert read_connector(loaded, tmp_path / "c.safetensors", expected={"stem": "sha256:a"}) == digest
    for name, value in saved.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], value.half().float(), atol=0, rtol=0)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert write_connector(tmp_path / "d.safetensors", loaded, {}) == digest


def test_what_does_not_belong_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    with pytest.raises(BackboneError, match=r"c\.json: not readable .*make mini-backbone"):
        read_connector(made(), path, expected={})
    write_connector(path, made(), {"stem": "sha256:a"})
    with pytest.raises(BackboneError, match="trained with stem sha256:a, found sha256:b; run: make mini-backbone"):
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
