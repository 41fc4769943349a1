"""Backbones of over 2 GiB. The tests take 7 GB of disk, 8 GB of memory and minutes."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.exhaustive, pytest.mark.timeout(900)]

MAKE = """
from transformers import BertConfig, BertModel
from tests.conftest import save_tiny

folder = Path(sys.argv[1])
save_tiny(folder)
size = dict(hidden_size=1024, num_attention_heads=16, num_hidden_layers=1)
config = BertConfig(vocab_size=560_000, max_position_embeddings=32, **size)
BertModel(config).save_pretrained(folder)
"""
EXPORT = r"""
from pidep.adapters.bank import bank_groups
from pidep.backbones.load import load_backbone
from pidep.deployment.release import release_bank
from pidep.export import Source, export_merged, load_recipe
from pidep.export.graph import export_bank_graph, export_merged_graph
from pidep.runtime import Bank, Merged
from tests.conftest import make_expert
from tests.export.examples import ROWS, TASK

folder, form, work = sys.argv[1:]
path = Path(work) / "model.onnx"
backbone = load_backbone(folder)
expert = make_expert(backbone, sites=["*query"])
weights = sum(one.numel() * one.element_size() for one in backbone.model.parameters())
assert weights > 2**31
# What loading took is not the export's.
Path("/proc/self/clear_refs").write_text("5")
if form == "bank":
    groups = bank_groups(backbone.model, list(expert.sites), kind="lora", size=2)
    export_bank_graph(backbone, groups, path, opset=20)
else:
    export_merged_graph(backbone, expert, path, opset=20)
# KiB: the weights, once, and what Python, torch and the exporter need themselves.
peak = 1024 * int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])
print(f"weights {weights / 1e9:.2f} GB, peak {peak / 1e9:.2f} GB")
# A pooler that no embedding reads is not exported.
assert path.with_name("model.onnx.data").stat().st_size >= 0.99 * weights
assert peak <= 1.3 * weights + 1e9
path.with_name("model.onnx.data").unlink()

source, recipe = Source(expert, TASK, ROWS), load_recipe("onnx-cpu")
if form == "bank":
    Bank(release_bank([source], Path(work) / "repo", recipe).folder / "1")
else:
    Merged(export_merged(source, Path(work) / "repo", recipe).folder / "1")
"""


def run(script: str, *arguments: object) -> str:
    """In a process of its own, whose memory nothing else has used."""
    script = f"import re, sys\nfrom pathlib import Path\n{script}"
    command = [sys.executable, "-c", script, *map(str, arguments)]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr[-3000:]
    return found.stdout


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("large") / "backbone"
    run(MAKE, folder)
    return folder


@pytest.mark.parametrize("form", ["bank", "merged"])
def test_over_2_gib(large: Path, tmp_path: Path, form: str) -> None:
    """Exported within 1.3 times its weights and a constant, through the gate, and opened."""
    print(run(EXPORT, large, form, tmp_path))
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
