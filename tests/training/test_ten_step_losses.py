"""Golden losses: the first steps of every way to train are those of `ten_step_losses.json`.

The weights come from numpy, because torch draws normal numbers differently on different processors.
For the same reason, the kinds here start from zeros or uniform numbers.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from pidep.experts.folder import write_expert
from pidep.settings import checked
from pidep.training.own_expert import train_own_expert
from pidep.training.settings import TrainingSettings
from pidep.tuning.settings import TuneSettings
from pidep.tuning.tune import tune
from tests.conftest import WORDS, make_expert

GOLDEN = Path(__file__).parent / "ten_step_losses.json"
# Processors add the same numbers in different orders (AVX2, AVX-512, oneDNN). The difference grows
# with each step. The largest seen after ten steps is 3e-6 of the loss (bitfit, AVX2).
TOLERANCE = 2e-5
KINDS = ["lora", "adapter", "bitfit"]
PARAMETERS: dict[str, object] = {
    "steps": 10, "batch_size": 8, "eval_every": 5, "rank": 2, "fisher_samples": 8, "max_length": 12
}  # fmt: skip


@pytest.fixture(scope="module")
def backbone_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT whose weights are the same on every processor."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("golden-bert")
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
    )
    model = BertModel(config)
    rng = np.random.default_rng(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            start = 1.0 if name.endswith("LayerNorm.weight") else 0.0
            drawn = rng.normal(start, 0.2, tuple(parameter.shape)).astype(np.float32)
            parameter.copy_(torch.from_numpy(drawn))
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    BertTokenizerFast(vocab=str(folder / "vocab.txt"), mask_token="[UNK]").save_pretrained(folder)
    return folder


def agree(case: str, losses: list[float]) -> None:
    """Compare with the golden file; PIDEP_WRITE_GOLDEN=1 writes the file instead."""
    known = json.loads(GOLDEN.read_text()) if GOLDEN.is_file() else {}
    if os.environ.get("PIDEP_WRITE_GOLDEN"):
        GOLDEN.write_text(json.dumps({**known, case: losses}, indent=1, sort_keys=True) + "\n")
        return
    assert losses == pytest.approx(known[case], rel=TOLERANCE)


def recorder(losses: list[float]) -> Callable[[str, int, int, float], None]:
    return lambda phase, step, total, loss: losses.append(loss)


@pytest.mark.parametrize("kind", KINDS)
def test_tune_learns_the_own_expert(
    backbone_folder: Path, task_file: Path, tmp_path: Path, kind: str
) -> None:
    losses: list[float] = []
    asked = {"task": str(task_file), "backbone": str(backbone_folder), "kind": kind, "top_k": 0}
    tune(
        checked(TuneSettings, {**PARAMETERS, **asked}, where="tune"),
        tmp_path / "run",
        on_step=recorder(losses),
    )
    assert len(losses) == 10
    agree(f"tune {kind}", losses)


def test_tune_interpolates_few_shots(
    backbone_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    from pidep.backbones.load import load_backbone

    backbone = load_backbone(str(backbone_folder))
    rng = np.random.default_rng(1)
    for seed, name in enumerate(("one", "two")):
        expert = make_expert(backbone, name=name, seed=seed)
        embedding: dict[str, npt.NDArray[np.float32]] = {
            f"{site}.{tensor}": rng.exponential(1e-4, array.shape).astype(np.float32)
            for site, tensors in expert.sites.items()
            for tensor, array in tensors.items()
        }
        write_expert(expert, tmp_path / "pool" / name, fisher=embedding)
    losses: list[float] = []
    asked = {
        "task": str(task_file),
        "backbone": str(backbone_folder),
        "pool": tmp_path / "pool",
        "shots": 16,
        "top_k": 2,
        "folds": 2,
        "mixture_steps": 10,
    }
    tune(
        checked(TuneSettings, {**PARAMETERS, **asked}, where="tune"),
        tmp_path / "run",
        on_step=recorder(losses),
    )
    # The own expert, then five candidates in each of two folds, then the chosen candidate.
    agree("tune auto", losses)


@pytest.mark.parametrize("kind", KINDS)
def test_the_lab_learns_an_expert(backbone_folder: Path, kind: str) -> None:
    from pidep.adapters.mixture import find_sites
    from pidep.backbones.load import load_backbone
    from pidep.tasks.data import Split
    from pidep.tasks.task import Task
    from pidep.training.scorer import Scorer

    backbone = load_backbone(str(backbone_folder))
    labels = {"negative": "negative", "positive": "positive"}
    task = Task(name="film", labels=labels, data={"packaged": "x"})
    rows = Split(
        ["the film was good", "awful film", "bad a bad film", "a great film"], [1, 0, 0, 1]
    )
    training = TrainingSettings(
        kind=kind,
        sites=tuple(find_sites(backbone.model, ["*"], kind=kind)),
        rank=2,
        scaling=2.0 if kind == "lora" else 1.0,
        steps=10,
        batch_size=2,
        warmup=0.1,
        weight_decay=0.01,
        eval_every=5,
        patience=2,
        seed=3,
    )
    scorer = Scorer(backbone, backbone.encode(list(labels), max_length=8), 20.0, 12)
    losses: list[float] = []
    train_own_expert(scorer, task, training, rows, rows, on_step=recorder(losses))
    assert len(losses) == 10
    agree(f"lab {kind}", losses)
