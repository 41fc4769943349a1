"""`pidep doctor` says what this machine can run, and changes nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.cli.run import Done

on_cpu = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")


@on_cpu
def test_it_says_which_path_the_kernels_run_and_why(
    tmp_path: Path, inside: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = inside("doctor", "--json")
    assert (done.code, done.err) == (0, "")
    found = json.loads(done.out)
    assert found["kernels"]["path"] == "torch"
    assert found["kernels"]["because"] == "no NVIDIA GPU that torch can use"
    assert (
        found["packages"]["torch"] == torch.__version__.partition("+")[0]
        or "+" in found["packages"]["torch"]
    )
    assert "CPUExecutionProvider" in found["serving"]["onnxruntime"]
    text = inside("doctor")
    assert text.code == 0
    assert all(str(value) in text.out for part in found.values() for value in part.values())
    assert not list(tmp_path.iterdir())
