"""Where kinds of experts act in a backbone, and where they cannot."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from pidep.adapters import kinds
from pidep.adapters.dense import linear_at
from pidep.adapters.fold import folded_or_attached
from pidep.adapters.kinds import KINDS, adapter_kind
from pidep.adapters.mixture import attached
from pidep.adapters.places import find_sites
from pidep.errors import ExpertError
from pidep.experts.kind_names import kind_names
from tests.adapters.small_experts import make, mixture_of, model_of, run
from tests.adapters.zoo import LENGTH, ZOO


def test_a_kind_is_one_file() -> None:
    assert tuple(KINDS) == kind_names()
    assert KINDS.keys() == {path.stem for path in Path(kinds.__file__).parent.glob("*.py")} - {
        "__init__"
    }
    assert all(name == kind.name for name, kind in KINDS.items())
    with pytest.raises(
        ExpertError, match=r"expert kind 'lorra': expected one of .* \(did you mean 'lora'\?\)"
    ):
        adapter_kind("lorra")


HOULSBY = {
    "BERT": ({"attention.output.dense"}, {"output.dense"}),
    "RoBERTa": ({"attention.output.dense"}, {"output.dense"}),
    "DistilBERT": ({"attention.out_lin"}, {"ffn.lin2"}),
    "ELECTRA": ({"attention.output.dense"}, {"output.dense"}),
    "DeBERTa-v2": ({"attention.output.dense"}, {"output.dense"}),
    "ModernBERT": ({"attn.Wo"}, {"mlp.Wo"}),
    "MPNet": ({"attention.attn.o"}, {"output.dense"}),
    "GPT-2": ({"attn.c_proj"}, {"mlp.c_proj"}),
    "Llama": ({"self_attn.o_proj"}, {"mlp.down_proj"}),
    "Qwen2": ({"self_attn.o_proj"}, {"mlp.down_proj"}),
    "OPT": ({"self_attn.out_proj"}, {"fc2"}),
    "T5": ({"SelfAttention.o", "EncDecAttention.o"}, {"DenseReluDense.wo"}),
    "BART": ({"self_attn.out_proj", "encoder_attn.out_proj"}, {"fc2"}),
    "ViT": ({"attention.o_proj"}, {"mlp.fc2"}),
    "DINOv2": ({"attention.o_proj"}, {"mlp.fc2"}),
    "Swin": ({"attention.o_proj"}, {"mlp.fc2"}),
    "CLIP": ({"self_attn.out_proj"}, {"mlp.fc2"}),
    "SigLIP": ({"self_attn.out_proj"}, {"mlp.fc2"}),
    "BLIP": ({"attention.output.dense", "self_attn.projection"}, {"output.dense", "mlp.fc2"}),
    "BLIP, captions": (
        {"attention.output.dense", "crossattention.output.dense", "self_attn.projection"},
        {"output.dense", "mlp.fc2"},
    ),
    "ViLT": ({"attention.output.dense"}, {"output.dense"}),
    "FLAVA": ({"attention.output.dense"}, {"output.dense"}),
    "Florence-2": (
        {
            "self_attn.out_proj",
            "encoder_attn.out_proj",
            "spatial_block.window_attn.proj",
            "channel_block.channel_attn.proj",
        },
        {"fc2", "spatial_block.ffn.fc2", "channel_block.ffn.fc2"},
    ),
}


"""Adapters after attention, and after the feed-forward block: names below the layer's number."""


@pytest.mark.parametrize("name", ZOO)
def test_adapters_stand_where_houlsby_and_pfeiffer_put_them(model: nn.Module, name: str) -> None:
    def below(sites: list[str]) -> set[str]:
        return {re.split(r"(?:\.\d+)+\.", site)[-1] for site in sites}

    attention, feed_forward = HOULSBY[name]
    houlsby, pfeiffer = (
        find_sites(model, [word], kind="adapter") for word in ("houlsby", "pfeiffer")
    )
    assert houlsby == find_sites(model, kind="adapter")
    assert below(houlsby) == attention | feed_forward
    assert below(pfeiffer) == feed_forward
    # Every layer has one adapter of each kind: one after each attention, cross-attention counted,
    # and one after the feed-forward block.
    assert len(pfeiffer) == len({site.rpartition(".")[0] for site in pfeiffer})
    assert {site for site in houlsby if site not in pfeiffer} == {
        site for site in houlsby if below([site]) <= attention
    }


def test_what_a_model_asks_of_a_wrapped_layer_is_the_layers(tiny) -> None:
    site = find_sites(tiny.model)[0]
    linear = tiny.model.get_submodule(site)
    with attached(tiny.model, mixture_of(make(tiny.model, "lora", seed=0), kind="lora")):
        wrapped = tiny.model.get_submodule(site)
        assert wrapped is not linear
        assert (wrapped.weight, wrapped.in_features) == (linear.weight, 16)
        with pytest.raises(AttributeError, match="nonsense"):
            wrapped.nonsense  # noqa: B018


def test_the_output_vocabulary_and_a_pooler_are_only_taken_when_named() -> None:
    import transformers

    model = transformers.LlamaForCausalLM._from_config(ZOO["Llama"].config())
    assert find_sites(model, ["*"]) == [f"model.{name}" for name in find_sites(model_of("Llama"))]
    assert find_sites(model, ["lm_head"]) == ["lm_head"]
    assert "pooler.dense" not in find_sites(model_of("BERT"))
    assert find_sites(model_of("BERT"), ["pooler*"]) == ["pooler.dense"]


def test_a_conv1d_is_a_linear_over_the_same_memory() -> None:
    model = ZOO["GPT-2"].build()
    conv, linear = model.get_submodule("h.0.attn.c_attn"), linear_at(model, "h.0.attn.c_attn")
    x = torch.randn(2, 3, 16)
    torch.testing.assert_close(linear(x), conv(x))
    assert (linear.in_features, linear.out_features) == (16, 48)
    expert = make(model, "lora", seed=0)
    before = run(ZOO["GPT-2"], model)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    want = run(ZOO["GPT-2"], model, mixture_of(expert, kind="lora"))
    with folded_or_attached(model, expert, kind="lora", scaling=1.5):
        torch.testing.assert_close(run(ZOO["GPT-2"], model), want, atol=2e-5, rtol=1e-5)
    assert torch.equal(run(ZOO["GPT-2"], model), before)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@torch.no_grad()
def test_a_pooler_reads_the_text_not_the_prompt() -> None:
    model = model_of("BERT")
    with attached(model, mixture_of(make(model, "prompt", seed=0), kind="prompt")):
        output = model(**ZOO["BERT"].inputs(), output_hidden_states=True)
    torch.testing.assert_close(output.pooler_output, model.pooler(output.last_hidden_state))
    assert {hidden.shape[1] for hidden in output.hidden_states} == {LENGTH}


def test_texts_that_do_not_fit_behind_virtual_tokens_are_refused() -> None:
    ids = torch.ones(1, 31, dtype=torch.long)
    for name, kind in (
        ("BERT", "prompt"),
        ("BERT", "prefix"),
        ("OPT", "prefix"),
        ("RoBERTa", "prompt"),
    ):
        model = model_of(name)
        with (
            pytest.raises(
                ExpertError,
                match=(
                    r"texts of 31 tokens behind 3 virtual ones: the backbone has 3\d positions; "
                    r"cut texts at"
                ),
            ),
            attached(model, mixture_of(make(model, kind, seed=0), kind=kind)),
        ):
            model(input_ids=ids, attention_mask=torch.ones_like(ids))
