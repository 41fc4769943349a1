"""Graphs in fp16: every kind merged, and a bank whose experts are fp16 inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from pidep.deployment.release import release_bank
from pidep.export import Source, export_merged, load_recipe
from pidep.runtime import Bank, Merged
from tests.export.examples import ROWS, TASK, noisy, torch_scores

pytestmark = pytest.mark.slow  # graphs are compiled

HALF = load_recipe("onnx-cuda-fp16")


def types_of(graph: Path) -> set[int]:
    return {one.data_type for one in onnx.load(graph).graph.initializer}


@pytest.mark.parametrize("kind", ["lora", "adapter", "prefix", "prompt", "bitfit"])
def test_a_merged_model_in_fp16(shallow: Any, tmp_path: Path, kind: str) -> None:
    expert = noisy(shallow, kind)
    weights = {name: value.clone() for name, value in shallow.model.state_dict().items()}
    exported = export_merged(Source(expert, TASK, ROWS), tmp_path, HALF)
    version = exported.folder / "1"
    assert onnx.TensorProto.FLOAT16 in types_of(version / "model.onnx")
    found = [answer.scores for answer in Merged(version).run(ROWS.rows)]
    want = torch_scores(shallow, expert, ROWS.rows)
    # fp16 rounds to three digits: far above fp32's error, far below what the expert does.
    assert 1e-7 < np.abs(found - want).max() < 5e-3
    # The backbone itself stays in fp32.
    now = shallow.model.state_dict()
    assert all(bool((now[name] == value).all()) for name, value in weights.items())


def test_a_bank_in_fp16(backbone: Any, tmp_path: Path) -> None:
    experts = {kind: noisy(backbone, kind) for kind in ("lora", "prompt")}
    sources = [Source(expert, TASK, ROWS) for expert in experts.values()]
    exported = release_bank(sources, tmp_path / "repo", HALF)
    bank = Bank(exported.folder / "1")
    inputs = {one.name: one.type for one in bank.session.get_inputs()}
    assert {inputs[group.input] for group in bank.record.groups} == {"tensor(float16)"}
    residents = bank.build(experts)
    for name, expert in experts.items():
        found = [one.scores for one in bank.run(residents, ROWS.rows, [name] * len(ROWS.rows))]
        np.testing.assert_allclose(found, torch_scores(backbone, expert, ROWS.rows), atol=5e-3)
