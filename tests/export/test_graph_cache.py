"""The cache of bank graphs: same bytes, made once, and nothing damaged or foreign is used."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pidep.adapters.bank import bank_groups
from pidep.experts.kind import BankGroup
from pidep.export import graph_cache
from pidep.export.graph_cache import cached_bank_graph
from pidep.files.cache_file import write_cached


class Exports:
    """Asks for graphs, and counts those that had to be made."""

    def __init__(self, backbone: Any, folder: Path) -> None:
        self.backbone, self.folder, self.made = backbone, folder, 0
        sites = ["encoder.layer.0.attention.self.query"]
        self.groups = bank_groups(backbone.model, sites, kind="lora", size=2)

    def ask(self, content: bytes = b"graph", **more: Any) -> bytes:
        path = self.folder / "model.onnx"

        def make() -> None:
            self.made += 1
            path.write_bytes(content)

        facts = {"opset": 20, "half": False, "groups": self.groups, **more}
        groups: list[BankGroup] = facts.pop("groups")
        cached_bank_graph(self.backbone, groups, path, make, **facts)
        return path.read_bytes()


@pytest.fixture
def exports(backbone: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Exports:
    monkeypatch.setattr(graph_cache, "cache_folder", lambda: tmp_path / "cache")
    return Exports(backbone, tmp_path)


def kept(exports: Exports) -> list[Path]:
    return sorted((exports.folder / "cache" / "graphs").glob("*"))


def test_a_graph_is_made_once(exports: Exports) -> None:
    assert exports.ask(b"first") == exports.ask(b"second") == b"first"
    assert exports.made == 1


@pytest.mark.parametrize(
    "change",
    [
        {"opset": 21},
        {"half": True},
        {"tower": "text"},
        {"groups": []},
    ],
)
def test_another_request_is_another_graph(exports: Exports, change: dict[str, Any]) -> None:
    exports.ask()
    exports.ask(**change)
    assert exports.made == 2


def test_another_backbone_or_other_code_is_another_graph(
    exports: Exports, monkeypatch: pytest.MonkeyPatch
) -> None:
    exports.ask()
    exports.backbone = replace(exports.backbone, digest="sha256:other")
    exports.ask()
    assert exports.made == 2
    monkeypatch.setattr(graph_cache, "code_digest", lambda: "changed")
    exports.ask()
    assert exports.made == 3


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def exchange(path: Path) -> None:
    """The file of another graph under this one's name."""
    write_cached(path, {"graph": np.zeros(4, np.uint8)}, key="another")


@pytest.mark.parametrize("damage", [flip, truncate, exchange])
def test_a_damaged_graph_is_made_again(exports: Exports, damage: Callable[[Path], None]) -> None:
    exports.ask()
    (file,) = kept(exports)
    damage(file)
    assert exports.ask(b"again") == b"again"
    assert exports.ask(b"not asked") == b"again"
    assert exports.made == 2


def test_the_oldest_graphs_go_first(exports: Exports, monkeypatch: pytest.MonkeyPatch) -> None:
    exports.ask()
    (first,) = kept(exports)
    monkeypatch.setattr(graph_cache, "MOST_BYTES", int(2.5 * first.stat().st_size))
    exports.ask(opset=21)
    exports.ask()  # used just now, so the other one is older
    exports.ask(opset=22)
    assert len(kept(exports)) == 2
    assert first in kept(exports)
    exports.ask()
    assert exports.made == 3
