"""`pidep doctor` says what runs here, and changes nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.cli.run import pidep as run

on_cpu = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")


@on_cpu
def test_it_says_which_path_the_kernels_run_and_why(tmp_path: Path) -> None:
    done = run("doctor", "--json", cwd=tmp_path)
    assert (done.code, done.err) == (0, "")
    found = json.loads(done.out)
    assert found["kernels"]["path"] == "torch"
    assert found["kernels"]["because"] == "no NVIDIA GPU that torch can use"
    assert found["packages"]["torch"] == torch.__version__.partition("+")[0] or "+" in found["packages"]["torch"]
    assert "CPUExecutionProvider" in found["serving"]["onnxruntime"]
    text = run("doctor", cwd=tmp_path)
    assert text.code == 0
    assert all(str(value) in text.out for part in found.values() for value in part.values())
    assert not list(tmp_path.iterdir())
