"""Tuning of the launch table, where there is no GPU."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch


@pytest.mark.skipif(torch.cuda.is_available(), reason="checks what a machine without a GPU says")
def test_without_a_gpu_it_says_why() -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-m", "tools.tune_launches"], cwd=root, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("tune-launches: the kernels run in plain torch here (no NVIDIA GPU")
