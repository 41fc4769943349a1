"""LoRAs from PEFT and to PEFT.

PEFT's LoRA is imported, served and answers the same. pidep's LoRA gives the same logits in PEFT.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from pidep.errors import ExpertError
from pidep.experts.folder import Expert, read_expert
from pidep.serving.client import Client, Request
from pidep.serving.server import TritonServer, free_ports
from tests.cli.run import pidep, untouched

TEXTS = [
    "the film was very good",
    "awful",
    "a very bad film was the great film",
    "great",
    "the bad film was bad and bad and bad and bad",
]
LABELS = [1, 0, 0, 1, 0]


class Peft:
    """Scores from transformers and peft alone.

    20 times the cosines of the mean-pooled rows with the bare backbone's label texts.
    """

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModel, AutoTokenizer

        self.folder = folder
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self.labels = self.embed(
            AutoModel.from_pretrained(folder).eval(), ["negative", "positive"]
        ).detach()

    def embed(self, model: Any, texts: list[str]) -> Tensor:
        """Embeddings `[B, D]`, unit rows."""
        tokens = self.tokenizer(
            texts, padding=True, truncation=True, max_length=12, return_tensors="pt"
        )
        hidden = model(
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
        ).last_hidden_state
        mask = tokens["attention_mask"].unsqueeze(-1).float()
        return normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)

    def logits(self, model: Any, texts: list[str]) -> Tensor:
        """Logits `[B, C]`."""
        return 20.0 * self.embed(model, texts) @ self.labels.T

    def trained(self, out: Path, **settings: Any) -> Any:
        """A LoRA trained by peft for a few steps, saved to a folder."""
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModel

        torch.manual_seed(0)
        base = AutoModel.from_pretrained(self.folder).eval()
        model = get_peft_model(
            base,
            LoraConfig(
                **{"r": 4, "lora_alpha": 8, "target_modules": ["query", "value"], **settings}
            ),
        )
        optimizer = torch.optim.AdamW(
            [value for value in model.parameters() if value.requires_grad], lr=0.05
        )
        for _ in range(8):
            loss = cross_entropy(self.logits(model, TEXTS), torch.tensor(LABELS))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        model.save_pretrained(out)
        return model.eval()

    def loaded(self, adapter: Path) -> Any:
        """An adapter on a bare backbone, loaded as any user of PEFT would."""
        from peft import PeftModel
        from transformers import AutoModel

        return PeftModel.from_pretrained(AutoModel.from_pretrained(self.folder), adapter).eval()


@pytest.fixture
def peft(tiny_folder: Path) -> Peft:
    return Peft(tiny_folder)


def our_logits(backbone: Any, folder: Path) -> Tensor:
    from pidep.adapters.mixture import Mixture, attached

    expert = read_expert(folder)
    with attached(backbone.model, Mixture.of([expert])):
        embeddings = backbone.encode(TEXTS, max_length=expert.max_length)
    return expert.logit_scale * embeddings @ torch.from_numpy(expert.label_embeddings).T


def same(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs.detach(), atol=1e-5, rtol=0)


# From peft.


def adopted(folder: Path, task: Path, backbone: Path) -> Expert:
    """The expert that `pidep import` makes of an adapter, beside it."""
    from pidep.tuning.import_peft import import_peft
    from pidep.tuning.settings import ImportSettings

    out = folder.parent / "expert"
    return import_peft(
        ImportSettings(folder=folder, task=str(task), out=out, backbone=str(backbone))
    )


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True},
        {"target_modules": "all-linear", "exclude_modules": ["pooler.dense"]},
        {"layers_to_transform": [1], "r": 3, "lora_alpha": 5},
        {"target_modules": r"encoder\.layer\.0\..*dense", "init_lora_weights": "gaussian"},
    ],
    ids=lambda settings: ",".join(settings) or "plain",
)
def test_a_lora_of_pefts_means_the_same_here(
    peft: Peft, tiny, task_file: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    model = peft.trained(tmp_path / "lora", **settings)
    bare = peft.logits(peft.loaded(tmp_path / "lora").get_base_model(), TEXTS)
    adopted(tmp_path / "lora", task_file, peft.folder)
    theirs = peft.logits(model, TEXTS)
    assert bare.shape == theirs.shape
    same(our_logits(tiny, tmp_path / "expert"), theirs)


@pytest.mark.parametrize(
    "settings",
    [
        {"use_dora": True},
        {"init_lora_weights": "olora"},
        {"init_lora_weights": "pissa"},
        {"modules_to_save": ["pooler"]},
        {"bias": "lora_only"},
        {"trainable_token_indices": {"word_embeddings": [1]}},
    ],
    ids=lambda settings: next(iter(settings)) + str(next(iter(settings.values()))),
)
def test_what_cannot_be_honoured_is_refused_by_name(
    peft: Peft, task_file: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    peft.trained(tmp_path / "lora", **settings)
    with untouched(tmp_path), pytest.raises(ExpertError, match=next(iter(settings))):
        adopted(tmp_path / "lora", task_file, peft.folder)


@pytest.mark.server
def test_an_expert_trained_by_peft_is_served(peft: Peft, task_file: Path, tmp_path: Path) -> None:
    theirs = torch.softmax(peft.logits(peft.trained(tmp_path / "lora"), TEXTS), 1).detach().numpy()
    for arguments in (
        ("import", "lora", "--task", task_file, "--out", "expert", "--backbone", peft.folder),
        ("export", "expert", "--task", task_file, "--repo", "repo"),
    ):
        done = pidep(*arguments, cwd=tmp_path)
        assert (done.code, done.err) == (0, "")
    with TritonServer(tmp_path / "repo", free_ports()) as server, Client(server.grpc_url) as client:
        answers = client.infer([Request(text, "film") for text in TEXTS])
    np.testing.assert_allclose(
        [list(answer.scores.values()) for answer in answers], theirs, atol=1e-5, rtol=0
    )
    assert {answer.digest for answer in answers} == {read_expert(tmp_path / "expert").digest}


# To peft.


def test_what_pidep_tunes_peft_loads(peft: Peft, tiny, task_file: Path, tmp_path: Path) -> None:
    from pidep.settings import checked
    from pidep.tuning.settings import TuneSettings
    from pidep.tuning.tune import tune

    small = {
        "task": str(task_file),
        "backbone": str(peft.folder),
        "steps": 4,
        "mixture_steps": 3,
        "rank": 2,
        "batch_size": 8,
    }
    for name in ("book", "film"):
        settings = checked(
            TuneSettings,
            {**small, "name": name, "pool": tmp_path / "pool", "seed": len(name) + ord(name[0])},
            where="tune",
        )
        tune(settings, tmp_path / "runs" / name)
    run = tmp_path / "runs" / "film"
    assert {"film", "book"} <= set(json.loads((run / "alpha.json").read_text())["experts"])
    own, mixture = (read_expert(run / folder) for folder in ("own", "expert"))
    assert mixture.rank > own.rank == 2
    for folder in ("own", "expert"):
        same(our_logits(tiny, run / folder), peft.logits(peft.loaded(run / folder), TEXTS))


@pytest.mark.parametrize("peft_type", ["prompt", "prefix"])
def test_virtual_tokens_of_peft_are_taken_over(
    tiny_folder: Path, task_file: Path, tmp_path: Path, peft_type: str
) -> None:
    from peft import PrefixTuningConfig, PromptTuningConfig, TaskType, get_peft_model
    from transformers import AutoModel

    from pidep.adapters.mixture import Mixture, attached
    from pidep.backbones.load import load_backbone
    from pidep.backbones.pooling import pool

    config_type = PromptTuningConfig if peft_type == "prompt" else PrefixTuningConfig
    torch.manual_seed(0)
    theirs = get_peft_model(
        AutoModel.from_pretrained(tiny_folder),
        config_type(task_type=TaskType.FEATURE_EXTRACTION, num_virtual_tokens=3),
    ).eval()
    theirs.save_pretrained(tmp_path / "peft")
    expert = adopted(tmp_path / "peft", task_file, tiny_folder)
    assert expert.kind == peft_type
    backbone = load_backbone(str(tiny_folder))
    ids, mask = (
        torch.from_numpy(array)
        for array in backbone.tokenize(["a very good film", "awful"], max_length=12)
    )
    with torch.no_grad():
        hidden = theirs(input_ids=ids, attention_mask=mask).last_hidden_state[:, -ids.shape[1] :]
    with attached(backbone.model, Mixture.of([expert])):
        ours = backbone.encode(["a very good film", "awful"], max_length=12)
    torch.testing.assert_close(ours, pool(hidden, mask, "mean"), atol=1e-5, rtol=0)
