"""The GPU check cannot run here. Its parts can, on the CPU, with a clock that stands still."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks import gpu, gpu_check
from benchmarks.gpu import correctness, speed, step
from benchmarks.record import RESULTS, check_result
from pidep.kernels import paths


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "DEVICE", "cpu")
    # Without it, the numbers depend on the tests that ran before in this process.
    torch.manual_seed(0)

    def timed(work: Callable[[], object], *, rep: int = 100) -> dict[str, float]:
        work()
        return {"p20_ms": 1.0, "p50_ms": 1.0, "p80_ms": 1.0}

    monkeypatch.setattr(speed, "timed", timed)

    def timed_once(work: Callable[[], object]) -> tuple[float, float]:
        work()
        return 1.0, 0.5

    monkeypatch.setattr(step, "timed_once", timed_once)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_plain_path_passes_its_checks(on_cpu: None, dtype: torch.dtype) -> None:
    for errors in (
        correctness.check_interpolate(dtype, [5, 1024, 3000], 1, 3),
        correctness.check_interpolate(dtype, [1], 1, 0),
        correctness.check_mixture(dtype, 70, 96, 130, 8),
        correctness.check_bank(dtype),
        correctness.check_fold(dtype, 300, 50, 8),
    ):
        assert max(errors.values()) <= correctness.TOLERANCE[dtype], errors


def test_a_wrong_kernel_does_not_pass(on_cpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(correctness, "lora_fold", lambda w, a, b, weight: w)
    assert (
        max(correctness.check_fold(torch.float32, 30, 50, 8).values())
        > correctness.TOLERANCE[torch.float32]
    )
    monkeypatch.setattr(
        correctness, "checks", lambda: iter([("nan", torch.float32, {"forward": float("nan")})])
    )
    assert not correctness.correctness()[0]["right"]


@pytest.mark.slow
def test_everything_that_is_timed_runs_and_makes_a_result(
    on_cpu: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    small = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
    }
    measured = {
        "interpolate": [
            {**speed.bench_interpolate(4096, count, torch.float32), "P": 2**24} for count in (1, 4)
        ],
        "fold": [speed.bench_fold(64, 96, torch.bfloat16)],
        "layers": [speed.bench_layer(64, 32, 48, torch.float32)],
        "step": [step.bench_step(torch.float32, shape=small, batch=2, length=8, rounds=2)],
    }
    here = paths.PathReport("fused", "a test", "a GPU", None)
    monkeypatch.setattr(paths, "report", lambda: here)
    monkeypatch.setattr(gpu_check, "measure", lambda _, found: found.update(measured))
    monkeypatch.setattr(
        correctness, "checks", lambda: iter([("one", torch.float32, {"forward": 0.0})])
    )
    assert gpu_check.main(["--results", str(tmp_path), "--skip-tuning"]) == 0
    path = tmp_path / "kernels-gpu.json"
    claims = check_result(path, json.loads(path.read_text()))
    assert sum("share of copy bandwidth" in claim["claim"] for claim in claims) == 6
    assert sum("training step" in claim["claim"] for claim in claims) == 2


def test_it_needs_nothing_but_torch_triton_and_transformers() -> None:
    missing = (
        "pydantic",
        "typer",
        "rich",
        "peft",
        "datasets",
        "sklearn",
        "onnx",
        "onnxruntime",
        "networkx",
        "matplotlib",
        "nevergrad",
    )
    blocked = f"import sys; sys.modules.update(dict.fromkeys({missing}))"
    code = (
        f"{blocked}; import benchmarks.gpu_check, benchmarks.gpu.correctness, "
        "benchmarks.gpu.speed, benchmarks.gpu.step"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=RESULTS.parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_without_a_gpu_it_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_check.main([]) == 1
    assert "needs an NVIDIA GPU" in capsys.readouterr().err
