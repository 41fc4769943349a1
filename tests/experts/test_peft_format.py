"""Adapters from PEFT and to PEFT: each loads what the other wrote, and the answers agree."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pidep.adapters.mixture import find_sites
from pidep.adapters.places import peft_can
from pidep.errors import ExpertError
from pidep.experts.folder import Expert, read_expert, write_expert
from pidep.experts.kinds import expert_kind
from pidep.experts.peft_format import at_sites, in_layer_order, read_peft
from tests.adapters.small_experts import make, mixture_of, run
from tests.adapters.zoo import ZOO, Architecture

PROMPTS = [
    "BERT",
    "RoBERTa",
    "DistilBERT",
    "ELECTRA",
    "DeBERTa-v2",
    "ModernBERT",
    "MPNet",
    "GPT-2",
    "Llama",
    "Qwen2",
    "OPT",
    "T5",
    "BART",
]
PREFIXES = ["BERT", "RoBERTa", "ELECTRA", "GPT-2", "Llama", "Qwen2", "OPT"]
"""Backbones on which PEFT 0.21 can run a prefix: PEFT passes it as a filled KV cache."""
CASES = [
    *(("prompt", name) for name in PROMPTS),
    *(("prefix", name) for name in PREFIXES),
    ("lora", "GPT-2"),
    ("lora", "T5"),
]
TOKENS = 3


def expert_of(model: Any, kind: str, **options: Any) -> Expert:
    tensors = make(model, kind, seed=0)
    return Expert(
        name="e",
        backbone_digest="sha256:0",
        sites=tensors,
        labels=("a",),
        label_texts=("a",),
        label_embeddings=np.ones((1, 2), np.float32),
        logit_scale=20.0,
        max_length=8,
        kind=kind,
        **{
            "scaling": 1.5 if kind == "lora" else 1.0,
            "peft": peft_can(model, list(tensors), kind=kind),
            **options,
        },
    )


def theirs(architecture: Architecture, model: Any) -> Tensor:
    """The answers of PEFT's model, without virtual tokens and padding."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        found = architecture.read(model.eval()(**architecture.inputs()))
    return in_sight(architecture, found)


@torch.no_grad()
def ours(architecture: Architecture, kind: str, sites: Any, *, scale: float = 1.5) -> Tensor:
    return in_sight(
        architecture,
        run(architecture, architecture.build(), mixture_of(sites, kind=kind, scaling=scale)),
    )


def in_sight(architecture: Architecture, hidden: Tensor) -> Tensor:
    if architecture.family == "encoder-decoder":
        return hidden
    mask = architecture.inputs()["attention_mask"].bool()
    return hidden[:, -mask.shape[1] :][mask]


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_peft_loads_what_pidep_writes(kind: str, name: str, tmp_path: Path) -> None:
    from peft import PeftModel

    architecture = ZOO[name]
    model = architecture.build()
    expert = expert_of(model, kind)
    assert expert.peft
    folder = write_expert(expert, tmp_path / "e")
    assert not (folder / "expert.safetensors").exists()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = PeftModel.from_pretrained(model, folder)
    want = theirs(architecture, loaded)
    torch.testing.assert_close(ours(architecture, kind, expert.sites), want, atol=2e-5, rtol=1e-4)
    assert (
        want - in_sight(architecture, run(architecture, architecture.build()))
    ).abs().amax() > 1e-3


@pytest.mark.parametrize("name", ["Florence-2", "ViLT"])
def test_prompts_of_models_that_also_read_images_are_not_in_peft(name: str) -> None:
    model = ZOO[name].build()
    assert not peft_can(model, find_sites(model, kind="prompt"), kind="prompt")


def trained_by_peft(
    kind: str, name: str, folder: Path, **settings: Any
) -> tuple[Architecture, Any]:
    from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model

    architecture = ZOO[name]
    tokens = {"num_virtual_tokens": TOKENS, "task_type": "FEATURE_EXTRACTION", **settings}
    configs: dict[str, Any] = {
        "lora": lambda: LoraConfig(
            r=4,
            lora_alpha=6,
            target_modules=["c_attn", "c_proj"],
            init_lora_weights=False,
            **settings,
        ),
        "prompt": lambda: PromptTuningConfig(**tokens),
        "prefix": lambda: PrefixTuningConfig(**tokens),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(5)
        model = get_peft_model(architecture.build(), configs[kind]())
        model.save_pretrained(folder)
    return architecture, model


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("prompt", "BERT"),
        ("prefix", "BERT"),
        ("prefix", "Qwen2"),
        ("prefix", "GPT-2"),
        ("lora", "GPT-2"),
    ],
)
def test_pidep_loads_what_peft_writes(kind: str, name: str, tmp_path: Path) -> None:
    architecture, model = trained_by_peft(kind, name, tmp_path)
    found = read_peft(tmp_path)
    assert found.kind == kind
    sites = at_sites(found, find_sites(architecture.build(), kind=kind))
    torch.testing.assert_close(
        ours(architecture, kind, sites, scale=found.scaling),
        theirs(architecture, model),
        atol=2e-5,
        rtol=1e-4,
    )


def test_a_projected_prefix_comes_flattened(tmp_path: Path) -> None:
    architecture, model = trained_by_peft(
        "prefix", "BERT", tmp_path, prefix_projection=True, encoder_hidden_size=8
    )
    sites = at_sites(read_peft(tmp_path), find_sites(architecture.build(), kind="prefix"))
    torch.testing.assert_close(
        ours(architecture, "prefix", sites), theirs(architecture, model), atol=2e-5, rtol=1e-4
    )


def test_of_an_encoder_decoders_prompt_the_encoders_half_is_read(tmp_path: Path) -> None:
    architecture, model = trained_by_peft("prompt", "T5", tmp_path)
    halves = torch.cat(
        [model.prompt_encoder["default"].embedding.weight.detach(), torch.ones(TOKENS, 16)]
    )
    from safetensors.torch import save_file

    save_file({"prompt_embeddings": halves}, tmp_path / "adapter_model.safetensors")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({**config, "num_transformer_submodules": 2})
    )
    sites = at_sites(read_peft(tmp_path), find_sites(architecture.build(), kind="prompt"))
    torch.testing.assert_close(
        ours(architecture, "prompt", sites), theirs(architecture, model), atol=2e-5, rtol=1e-4
    )


@pytest.mark.parametrize("name", ["DistilBERT", "ModernBERT", "T5", "BART", "ViT", "CLIP"])
def test_a_prefix_that_peft_cannot_run_keeps_pideps_own_file(name: str, tmp_path: Path) -> None:
    expert = expert_of(ZOO[name].build(), "prefix")
    assert expert.peft is False
    written = {path.name for path in write_expert(expert, tmp_path / "e").iterdir()}
    assert written == {"expert.safetensors", "labels.safetensors", "expert.json"}


def test_a_prefix_at_some_layers_is_not_in_peft(tmp_path: Path) -> None:
    model = ZOO["BERT"].build()
    every = find_sites(model, kind="prefix")
    assert peft_can(model, every, kind="prefix")
    assert not peft_can(model, every[1:], kind="prefix")
    assert not peft_can(model, find_sites(model, kind="adapter"), kind="adapter")


@pytest.mark.parametrize("rank_stabilized", [False, True])
@pytest.mark.parametrize(("alpha", "rank"), [(16, 8), (1, 3), (0.3, 7), (10, 6)])
def test_scaling_survives_peft_to_the_last_bit(
    alpha: float, rank: int, rank_stabilized: bool, tiny: Any, tmp_path: Path
) -> None:
    from peft import PeftModel

    from tests.conftest import make_expert

    exact = expert_kind("lora").scaling(alpha, rank, rank_stabilized=rank_stabilized)
    assert exact == (alpha / rank**0.5 if rank_stabilized else alpha / rank)
    expert = replace(make_expert(tiny, rank=rank, scaling=exact), rank_stabilized=rank_stabilized)
    again = read_expert(write_expert(expert, tmp_path / "e"))
    assert (again.scaling, again.rank_stabilized, again.digest) == (
        exact,
        rank_stabilized,
        expert.digest,
    )
    config = json.loads((tmp_path / "e" / "adapter_config.json").read_text())
    assert config["lora_alpha"] == pytest.approx(alpha)
    assert config.get("use_rslora", False) == rank_stabilized
    from transformers import AutoModel

    loaded = PeftModel.from_pretrained(AutoModel.from_pretrained(tiny.name), tmp_path / "e")
    assert loaded.base_model.model.encoder.layer[0].attention.self.query.scaling[
        "default"
    ] == pytest.approx(exact)


def test_a_scaling_that_peft_cannot_keep_is_kept(tiny: Any, tmp_path: Path) -> None:
    from tests.conftest import make_expert

    assert 0.1 * 3 / 3 != 0.1
    expert = make_expert(tiny, rank=3, scaling=0.1)
    assert read_expert(write_expert(expert, tmp_path / "e")).digest == expert.digest


def test_another_lora_alpha_than_the_experts_is_refused(tiny: Any, tmp_path: Path) -> None:
    from tests.conftest import make_expert

    folder = write_expert(make_expert(tiny), tmp_path / "e")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(
        json.dumps({**config, "lora_alpha": 5 * config["lora_alpha"]})
    )
    with pytest.raises(
        ExpertError, match=r"lora_alpha and r make a scaling of 10\.0, expert\.json says 2\.0"
    ):
        read_expert(folder)


def test_an_expert_written_before_there_was_a_scaling_is_read(tiny: Any, tmp_path: Path) -> None:
    from tests.conftest import make_expert

    folder = write_expert(make_expert(tiny), tmp_path / "e")
    record = json.loads((folder / "expert.json").read_text())
    del record["scaling"]
    (folder / "expert.json").write_text(json.dumps(record))
    assert read_expert(folder).scaling == 2.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"peft_type": "IA3"},
            r"peft_type is 'IA3', expected 'LORA' or 'PREFIX_TUNING' or 'PROMPT_TUNING'",
        ),
        ({"modules_to_save": ["c"]}, r"modules_to_save=\['c'\] is not supported"),
        (
            {"num_transformer_submodules": 2},
            r"num_transformer_submodules=2 \(encoder-decoder\) is not supported",
        ),
        (
            {"num_virtual_tokens": None},
            r"expected num_virtual_tokens >= 1 and num_layers >= 1, found None and 2",
        ),
        (
            {"num_virtual_tokens": 4},
            r"prompt_embeddings is float32 \(3, 64\), expected floats of 4 tokens and 4 equal "
            r"parts",
        ),
        (
            {"num_layers": 5},
            r"prompt_embeddings is float32 \(3, 64\), expected floats of 3 tokens and 10 equal "
            r"parts",
        ),
        (
            {"num_layers": 1},
            r"PEFT PREFIX_TUNING adapter: has 1 layers, the backbone has 2; it belongs to another "
            r"backbone",
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_name(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = write_expert(expert_of(ZOO["BERT"].build(), "prefix"), tmp_path / "e")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(ExpertError, match=message):
        read_expert(folder)


def test_layer_10_comes_after_layer_2() -> None:
    names = [f"layer.{number}.attention" for number in (10, 2, 1, 0)]
    assert in_layer_order(names) == [f"layer.{number}.attention" for number in (0, 1, 2, 10)]


def test_a_digest_does_not_depend_on_the_files() -> None:
    model = ZOO["BERT"].build()
    for kind in ("prompt", "prefix"):
        expert = expert_of(model, kind)
        assert replace(expert, peft=False).digest == replace(expert, peft=True).digest
