"""Backbones that the tests of exports share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.conftest import save_tiny


@pytest.fixture(scope="session")
def kept_graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the graphs of these tests are cached."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _own_cache(kept_graphs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No graph of another run of the tests, which other code may have made."""
    monkeypatch.setattr("pidep.export.graph_cache.cache_folder", lambda: kept_graphs)


@pytest.fixture
def no_cache(
    _own_cache: None, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For tests that change how a graph is made: an empty cache."""
    empty = tmp_path_factory.mktemp("empty")
    monkeypatch.setattr("pidep.export.graph_cache.cache_folder", lambda: empty)


@pytest.fixture(scope="module")
def backbone(tiny_folder: Path) -> Any:
    from pidep.backbones.load import load_backbone

    return load_backbone(str(tiny_folder))


@pytest.fixture(scope="module")
def shallow(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A backbone of one layer. The time of an export is in its layers, and every kind acts on each
    of them alike.
    """
    from pidep.backbones.load import load_backbone

    return load_backbone(str(save_tiny(tmp_path_factory.mktemp("shallow"), num_layers=1)))
