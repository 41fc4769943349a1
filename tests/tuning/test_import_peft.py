"""`pidep import`: adapters as PEFT writes them, with PEFT's own answers, or a way out."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pidep.adapters.mixture import Mixture, attached
from pidep.backbones.load import load_backbone
from pidep.errors import ExpertError
from pidep.experts.folder import Expert
from pidep.tuning.import_peft import import_peft
from pidep.tuning.settings import ImportSettings
from tests.conftest import save_tiny

TEXTS = ["the film was very good", "awful", "a very bad film", "great"]
CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"

Train = Callable[..., Any]


@pytest.fixture
def peft_model(tiny_folder: Path) -> Train:
    """A LoRA of PEFT with random factors on the tiny backbone."""
    import peft
    from transformers import AutoModel

    def make(base: Any = None, **settings: Any) -> Any:
        torch.manual_seed(0)
        base = AutoModel.from_pretrained(tiny_folder) if base is None else base
        options = {"r": 4, "lora_alpha": 8, "target_modules": ["query", "value"], **settings}
        model = peft.get_peft_model(base, peft.LoraConfig(**options))
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data = torch.randn(parameter.shape) * 0.3
        return model.eval()

    return make


def theirs(model: Any, folder: Path) -> Tensor:
    """The embeddings of a model of PEFT, pooled by the mean."""
    from transformers import AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(folder)(TEXTS, padding=True, return_tensors="pt")
    inputs = {name: tokens[name] for name in ("input_ids", "attention_mask")}
    mask = tokens["attention_mask"].unsqueeze(-1).float()
    with torch.no_grad():
        hidden = model(**inputs, output_hidden_states=True).hidden_states[-1]
    return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)


def ours(expert: Expert) -> Tensor:
    backbone = load_backbone(expert.backbone)
    with attached(backbone.model, Mixture.of([expert])):
        return backbone.encode(TEXTS, max_length=16)


@pytest.fixture
def adopt(task_file: Path, tiny_folder: Path, tmp_path: Path) -> Callable[..., Expert]:
    def run(folder: Path, backbone: Path = tiny_folder) -> Expert:
        return import_peft(
            ImportSettings(
                folder=folder,
                task=str(task_file),
                backbone=str(backbone),
                out=tmp_path / "out",
                overwrite=True,
            )
        )

    return run


PATTERNS = {
    "rank_pattern": {"layer.0.attention.self.query": 6, r".*\.1\..*value": 2},
    "alpha_pattern": {"layer.1.attention.self.query": 3},
}


@pytest.mark.parametrize(
    "settings",
    [
        {"init_lora_weights": "eva"},
        {"init_lora_weights": "mica"},
        {"use_rslora": True},
        PATTERNS,
        {**PATTERNS, "use_rslora": True},
    ],
    ids=["eva", "mica", "rslora", "patterns", "rslora and patterns"],
)
@pytest.mark.filterwarnings("ignore::UserWarning:peft.*")
def test_the_answers_are_those_of_peft(
    settings: dict[str, Any], peft_model: Train, adopt: Any, tiny_folder: Path, tmp_path: Path
) -> None:
    model = peft_model(**settings)
    model.save_pretrained(tmp_path / "lora")
    torch.testing.assert_close(
        ours(adopt(tmp_path / "lora")), theirs(model, tiny_folder), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_widened_exactly(
    dtype: torch.dtype, peft_model: Train, adopt: Any, tmp_path: Path
) -> None:
    model = peft_model().to(dtype)
    model.save_pretrained(tmp_path / "lora")
    sites = adopt(tmp_path / "lora").sites
    for name, parameter in model.named_parameters():
        if "lora_A" in name:
            site = name.removeprefix("base_model.model.").partition(".lora_A")[0]
            assert torch.equal(torch.from_numpy(sites[site]["lora_A"]), parameter.float())


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("base_model.model.", "base_model.model._orig_mod."),
        ("base_model.model.", "base_model.model.module."),
        ("base_model.model.", "_orig_mod.base_model.model."),
        (".layer.", "._orig_mod.layer."),
    ],
)
def test_wrappers_in_names_are_taken_off(
    before: str, after: str, peft_model: Train, adopt: Any, tmp_path: Path
) -> None:
    """torch.compile and data parallelism add them: to the base, the whole model, or a part."""
    peft_model().save_pretrained(tmp_path / "lora")
    digest = adopt(tmp_path / "lora").digest
    path = tmp_path / "lora" / TENSORS
    tensors = {name.replace(before, after, 1): value for name, value in load_file(path).items()}
    save_file(tensors, path)
    assert adopt(tmp_path / "lora").digest == digest


def test_a_model_with_the_head_of_a_task(
    peft_model: Train, adopt: Any, tiny_folder: Path, tmp_path: Path
) -> None:
    from transformers import BertForMaskedLM

    model = peft_model(BertForMaskedLM.from_pretrained(tiny_folder))
    model.save_pretrained(tmp_path / "lora")
    found = adopt(tmp_path / "lora")
    assert all(site.startswith("encoder.layer.") for site in found.sites)
    torch.testing.assert_close(ours(found), theirs(model, tiny_folder), atol=1e-5, rtol=0)


def test_files_of_the_hubs_cache_are_links(peft_model: Train, adopt: Any, tmp_path: Path) -> None:
    peft_model().save_pretrained(tmp_path / "lora")
    snapshot = tmp_path / "models--me--lora" / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    for name in (CONFIG, TENSORS):
        (snapshot / name).symlink_to(tmp_path / "lora" / name)
    digest = adopt(tmp_path / "lora").digest
    assert adopt(snapshot).digest == digest


def test_an_adapter_of_another_base_says_so(
    peft_model: Train,
    adopt: Any,
    tiny_folder: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    peft_model().save_pretrained(tmp_path / "lora")
    with caplog.at_level(logging.WARNING):
        found = adopt(tmp_path / "lora")
    assert "was trained on" not in caplog.text
    assert found.provenance["base"] == str(tiny_folder)
    other = save_tiny(tmp_path / "other")
    with caplog.at_level(logging.WARNING):
        adopt(tmp_path / "lora", other)
    assert f"was trained on {str(tiny_folder)!r}, and the backbone is {str(other)!r}" in caplog.text


def test_an_adapter_in_a_folder_of_its_name(peft_model: Train, adopt: Any, tmp_path: Path) -> None:
    peft_model().save_pretrained(tmp_path / "all" / "movie")
    with pytest.raises(ExpertError, match=r"no adapter_config.json here, and one in movie; give"):
        adopt(tmp_path / "all")
    with pytest.raises(ExpertError, match=r"no adapter_config.json; give the folder that PEFT"):
        adopt(tmp_path)
    with pytest.raises(ExpertError, match=r"no such folder; give the folder that PEFT wrote"):
        adopt(tmp_path / "nowhere")


def test_pickle_is_not_read(peft_model: Train, adopt: Any, tmp_path: Path) -> None:
    peft_model().save_pretrained(tmp_path / "lora")
    (tmp_path / "lora" / TENSORS).rename(tmp_path / "lora" / "adapter_model.bin")
    with pytest.raises(ExpertError, match=r"adapter_model.bin: is pickle.*call save_pretrained"):
        adopt(tmp_path / "lora")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa' is not supported"),
        ({"init_lora_weights": "lora_ga"}, "init_lora_weights='lora_ga' is not supported"),
        ({"monteclora_config": {"num_samples": 2}}, "monteclora_config=.* is not supported"),
        ({"of_a_later_version": True}, "of_a_later_version=True is not supported"),
        ({"rank_pattern": {"(": 2}}, "rank_pattern and alpha_pattern: expected numbers by site"),
        ({"alpha_pattern": {"query": "x"}}, "rank_pattern and alpha_pattern: expected numbers by"),
    ],
)
def test_other_settings_are_refused_by_name(
    changes: dict[str, Any], message: str, peft_model: Train, adopt: Any, tmp_path: Path
) -> None:
    peft_model().save_pretrained(tmp_path / "lora")
    path = tmp_path / "lora" / CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(ExpertError, match=message):
        adopt(tmp_path / "lora")
    assert not (tmp_path / "out").exists()


def test_a_number_type_that_numpy_lacks(peft_model: Train, adopt: Any, tmp_path: Path) -> None:
    peft_model().save_pretrained(tmp_path / "lora")
    path = tmp_path / "lora" / TENSORS
    narrow = {name: value.to(torch.float8_e4m3fn) for name, value in load_file(path).items()}
    save_file(narrow, path)
    with pytest.raises(ExpertError, match="is F8_E4M3, expected one of F64, F32, F16"):
        adopt(tmp_path / "lora")
