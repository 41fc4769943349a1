"""Imports of the rooms that serve: never torch, and ONNX Runtime only where a graph is run."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = {"torch", "transformers", "peft", "datasets"}


def loaded_after(code: str) -> set[str]:
    """Top-level modules that a fresh process has imported."""
    program = f"import sys\n{code}\nprint(' '.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return {name.split(".")[0] for name in done.stdout.split()}


@pytest.mark.parametrize("room", ["artifacts", "runtime", "serving"])
def test_every_public_name_is_there_without_torch(room: str) -> None:
    code = f"import pidep.{room} as room\nfor name in room.__all__: getattr(room, name)"
    assert not loaded_after(code) & HEAVY


def test_clients_and_swaps_need_no_onnx_runtime() -> None:
    code = "from pidep.serving import AsyncClient, Client, ExpertStore, swap_expert"
    loaded = loaded_after(code)
    assert "onnxruntime" not in loaded
    assert "numpy" in loaded


def test_names_are_there_before_anything_is_imported() -> None:
    code = "import pidep.artifacts.names, pidep.serving, pidep.deployment, pidep.export"
    assert not loaded_after(code) & {"numpy", "onnxruntime", "pydantic", *HEAVY}
