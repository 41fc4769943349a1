"""`make test-compat`: every recipe in both forms, and a release that answers otherwise is seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pidep.backbones.load import load_backbone
from pidep.export import load_recipe
from tools.compat import export_all
from tools.compat_answers import FOUND, main

pytestmark = pytest.mark.slow  # graphs are compiled


@pytest.fixture(scope="module")
def made(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    backbone: Any = load_backbone(str(tiny_folder))
    return export_all(backbone, [load_recipe("onnx-cpu")], tmp_path_factory.mktemp("graphs"))


def test_graphs_of_both_forms_answer_the_same_here(
    made: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert [place.name for place in made] == [
        "onnx-cpu-merged",
        "onnx-cpu-merged-beside",
        "onnx-cpu-bank",
        "onnx-cpu-bank-beside",
    ]
    assert main([*map(str, made)]) == 0
    assert capsys.readouterr().out.count("same") == 4


def test_another_answer_and_a_graph_that_does_not_load_fail(
    made: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    other, broken = made[0], made[1]
    found = np.load(other / FOUND)["found"]
    np.savez(other / FOUND, found=found + 0.1)
    (broken / "model.onnx.data").unlink()
    assert main([str(other), str(broken), str(made[2])]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "OTHER" in lines[1]
    assert "does not load" in lines[2]
    assert "same" in lines[3]
