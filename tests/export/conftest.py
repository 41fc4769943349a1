"""Backbones that the tests of exports share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.conftest import save_tiny


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
