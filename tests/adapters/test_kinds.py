"""Every kind on every architecture of the zoo.

Sites are found, experts attached, trained, mixed, given row by row, saved, and removed without a
trace.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pidep.adapters import kinds
from pidep.adapters.attention import configs
from pidep.adapters.dense import linear_at
from pidep.adapters.fold import folded_or_attached
from pidep.adapters.kinds import KINDS, adapter_kind
from pidep.adapters.mixture import Mixture, attached
from pidep.adapters.places import find_sites, fresh, peft_can
from pidep.adapters.site import Tensors
from pidep.errors import ExpertError
from pidep.experts.folder import Expert, read_expert, write_expert
from pidep.experts.kind_names import kind_names
from tests.adapters.zoo import BATCH, FITS, LENGTH, ZOO, Architecture

CASES = [(name, kind) for name in ZOO for kind in KINDS if isinstance(FITS[name][kind], int)]
REFUSED = [(name, kind) for name in ZOO for kind in KINDS if isinstance(FITS[name][kind], str)]
MIXED = [(name, kind, False) for name, kind in CASES] + [
    (name, kind, True) for name, kind in CASES if KINDS[kind].mixes_outputs
]
TEXT_CASES = [(name, kind) for name, kind in CASES if ZOO[name].family in ("encoder", "decoder")]
SIZE = 3
KEYS = re.compile(r"(k_lin|k_proj|\.k|\.key)\.bias$")
"""Biases of attention keys, which have no gradient.

A key bias shifts all scores of a query by the same number, and a softmax ignores that. Only rotary
and relative positions give a key bias a gradient.
"""
SHARED = ("*value_proj", "*dense", "embeddings.LayerNorm")
"""DeBERTa's sites that read texts only. query_proj, key_proj and encoder.LayerNorm also read
relative positions.
"""


@cache
def model_of(name: str) -> nn.Module:
    """One model for all tests of an architecture. Every test leaves it unchanged."""
    return ZOO[name].build()


@pytest.fixture
def architecture(name: str) -> Architecture:
    return ZOO[name]


@pytest.fixture
def model(name: str) -> Iterator[nn.Module]:
    found = model_of(name)
    before = trace_of(found)
    yield found
    assert trace_of(found) == before


def trace_of(model: nn.Module) -> Any:
    """Everything that an attachment could leave behind."""
    return (
        {
            name: (id(value), value.sum().item(), value.requires_grad)
            for name, value in model.state_dict(keep_vars=True).items()
        },
        {
            name: (id(module), type(module), hooks(module), plain(module))
            for name, module in model.named_modules()
        },
        [
            (id(config), config._attn_implementation, config.to_json_string())
            for config in configs(model)
        ],
    )


def hooks(module: nn.Module) -> list[int]:
    return [
        len(getattr(module, name))
        for name in ("_forward_hooks", "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs")
    ]


def plain(module: nn.Module) -> dict[str, Any]:
    """Attributes that are not tensors or modules, such as an embedding's offset."""
    return {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, int | float | str | bool | None)
    } | {"": tuple(sorted(vars(module)))}


def make(
    model: nn.Module,
    kind: str,
    *,
    seed: int,
    scale: float = 0.3,
    patterns: tuple[str, ...] = ("*",),
) -> dict[str, Tensors]:
    """A random expert that clearly changes the output."""
    rng = np.random.default_rng(seed)
    sites = fresh(model, find_sites(model, patterns, kind=kind), kind=kind, rank=SIZE)
    drawn = {
        site: {
            name: rng.normal(0, scale, value.shape).astype(np.float32)
            for name, value in part.items()
        }
        for site, part in sites.items()
    }
    for part in drawn.values():
        if "down_bias" in part:
            part["down_bias"] += (
                1  # of three units, all relus could be off, and then nothing has a gradient
            )
    return drawn


def mixture_of(
    *experts: Mapping[str, Tensors], kind: str, scaling: float = 1.5, on_outputs: bool = False
) -> Mixture:
    return Mixture(
        experts,
        [scaling if kind == "lora" else 1.0] * len(experts),
        kind=kind,
        on_outputs=on_outputs,
    )


def run(
    architecture: Architecture, model: nn.Module, mixture: Mixture | None = None, **inputs: Tensor
) -> Tensor:
    torch.manual_seed(0)  # ViLT draws the order of its patches at random
    with attached(model, mixture):
        return architecture.read(model(**{**architecture.inputs(), **inputs}))


def gradients(mixture: Mixture) -> Iterator[tuple[str, Tensor]]:
    """Names and gradients of all learned tensors, kept by the sites or by an arena."""
    for number, (name, site) in enumerate(mixture.by_name()):
        if mixture.arena is None:
            found = {
                tensor: parameter.grad
                for tensor, parameter in site.named_parameters()
                if tensor != "alpha_logits"
            }
        else:
            assert mixture.arena.learned.grad is not None
            found = dict(mixture.arena.unpacked(mixture.arena.learned.grad, number))
        for tensor, gradient in found.items():
            assert gradient is not None, f"{name}.{tensor} has no gradient"
            yield f"{name}.{tensor}", gradient


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_it_acts_and_learns(architecture: Architecture, model: nn.Module, kind: str) -> None:
    sites = find_sites(model, kind=kind)
    assert len(sites) == FITS[architecture.name][kind]
    with torch.no_grad():
        bare = run(architecture, model)
        untrained = run(
            architecture, model, mixture_of(fresh(model, sites, kind=kind, rank=SIZE), kind=kind)
        )
        moved = run(architecture, model, mixture_of(make(model, kind, seed=0), kind=kind))
    if kind in ("lora", "adapter", "bitfit"):
        assert torch.equal(untrained, bare)
    assert moved.shape == bare.shape
    assert ((moved - bare).flatten(1).abs().amax(1) > 1e-3).all()  # every row has moved
    mixture = mixture_of(make(model, kind, seed=0, scale=0.1), kind=kind)
    target = torch.randn(bare.shape, generator=torch.Generator().manual_seed(4))
    optimizer = torch.optim.Adam(mixture.expert_parameters(), lr=0.01)
    losses = []
    for _ in range(4):
        loss = (run(architecture, model, mixture) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    with torch.no_grad():
        assert torch.equal(run(architecture, model), bare)


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_every_tensor_has_a_gradient(
    architecture: Architecture, model: nn.Module, kind: str
) -> None:
    # In float32, a gradient of zero is 1e-10 on one processor and 0 on another. The deepest true
    # gradients are hardly larger. In float64 they are far apart: rounding errors stay below 1e-15
    # of the largest gradient.
    exact = copy.deepcopy(model).double()
    mixture = mixture_of(make(model, kind, seed=0, scale=0.1), kind=kind).double()
    inputs = {
        name: value.double() if value.is_floating_point() else value
        for name, value in architecture.inputs().items()
    }
    output = run(architecture, exact, mixture, **inputs)
    target = torch.randn(
        output.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64
    )
    (output - target).square().mean().backward()
    sizes = {name: gradient.abs().amax().item() for name, gradient in gradients(mixture)}
    assert len(sizes) == sum(len(tensors) for tensors in mixture.part(0).values())
    for name, size in sizes.items():
        if kind != "bitfit" or not KEYS.search(name):
            assert size > 1e-12 * max(sizes.values()), f"{name} has no gradient"


@pytest.mark.parametrize(("name", "kind", "on_outputs"), MIXED)
@torch.no_grad()
def test_a_mixture_selects_permutes_and_folds(
    architecture: Architecture, model: nn.Module, kind: str, on_outputs: bool
) -> None:
    experts = [make(model, kind, seed=seed) for seed in range(3)]
    mixture = mixture_of(*experts, kind=kind, on_outputs=on_outputs)
    for logits in mixture.alpha_parameters():
        logits.copy_(torch.tensor([-1e4, 0.0, -1e4]))
    alone = run(architecture, model, mixture_of(experts[1], kind=kind))
    torch.testing.assert_close(run(architecture, model, mixture), alone, atol=2e-5, rtol=1e-5)
    turned = mixture_of(experts[2], experts[0], experts[1], kind=kind, on_outputs=on_outputs)
    for (_, site), (_, other) in zip(mixture.by_name(), turned.by_name(), strict=True):
        site.alpha_logits.copy_(torch.tensor([0.3, -1.0, 0.7]))
        other.alpha_logits.copy_(torch.tensor([0.7, 0.3, -1.0]))
    mixed = run(architecture, model, mixture)
    assert not torch.allclose(mixed, alone, atol=1e-3)
    torch.testing.assert_close(run(architecture, model, turned), mixed, atol=2e-5, rtol=1e-5)
    folded = Mixture([mixture.folded()], [1.0], kind=kind)
    torch.testing.assert_close(run(architecture, model, folded), mixed, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize(("name", "kind"), CASES)
@torch.no_grad()
def test_each_row_can_have_its_own_expert(
    architecture: Architecture, model: nn.Module, kind: str
) -> None:
    patterns = (
        SHARED if architecture.name == "DeBERTa-v2" and kind in ("lora", "bitfit") else ("*",)
    )
    if kind == "lora" and patterns is SHARED:
        patterns = SHARED[:2]
    experts = [make(model, kind, seed=seed, patterns=patterns) for seed in range(3)]
    looped = torch.stack(
        [
            run(architecture, model, mixture_of(expert, kind=kind))[row]
            for row, expert in enumerate(experts)
        ]
    )
    mixture = mixture_of(experts[0], kind=kind)
    for name, site in mixture.by_name():
        site.rows = {
            tensor: torch.stack([torch.from_numpy(expert[name][tensor]) for expert in experts])
            for tensor in experts[0][name]
        }
    torch.testing.assert_close(run(architecture, model, mixture), looped, atol=2e-5, rtol=1e-5)
    for name, site in mixture.by_name():  # one expert for the whole batch
        site.rows = {
            tensor: torch.from_numpy(experts[1][name][tensor])[None] for tensor in experts[1][name]
        }
    shared = run(architecture, model, mixture_of(experts[1], kind=kind))
    torch.testing.assert_close(run(architecture, model, mixture), shared, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_save_then_load_is_the_identity(
    architecture: Architecture, model: nn.Module, kind: str, tmp_path: Path
) -> None:
    tensors = make(model, kind, seed=0)
    expert = Expert(
        name="e",
        backbone_digest="sha256:0",
        sites=tensors,
        scaling=1.5 if kind == "lora" else 1.0,
        labels=("a",),
        label_texts=("a",),
        label_embeddings=np.ones((1, 2), np.float32),
        logit_scale=20.0,
        max_length=8,
        kind=kind,
        peft=peft_can(model, list(tensors), kind=kind),
    )
    folder = write_expert(expert, tmp_path / "e")
    assert (folder / "adapter_config.json").is_file() == expert.peft
    again = read_expert(folder)
    assert again.digest == expert.digest
    assert again.sites.keys() == expert.sites.keys()
    for site in tensors:
        assert all(
            np.array_equal(again.sites[site][name], value) for name, value in tensors[site].items()
        )
    with torch.no_grad():
        assert torch.equal(
            run(architecture, model, Mixture.of([again])),
            run(architecture, model, mixture_of(tensors, kind=kind)),
        )


@pytest.mark.parametrize(("name", "kind"), REFUSED)
def test_where_it_does_not_fit_it_says_why(model: nn.Module, kind: str, name: str) -> None:
    with pytest.raises(
        ExpertError,
        match=(
            f"{kind} experts: {type(model).__name__} has no .*{FITS[name][kind]}.*; use another "
            "kind"
        ),
    ):
        find_sites(model, kind=kind)


@pytest.mark.parametrize(("name", "kind"), TEXT_CASES)
@torch.no_grad()
def test_padding_and_other_rows_do_not_matter(
    architecture: Architecture, model: nn.Module, kind: str
) -> None:
    mixture = mixture_of(make(model, kind, seed=0), kind=kind)
    inputs = architecture.inputs()
    together = run(architecture, model, mixture)
    for row, length in enumerate(inputs["attention_mask"].sum(1).tolist()):
        alone = run(
            architecture,
            model,
            mixture,
            **{name: value[row : row + 1, :length] for name, value in inputs.items()},
        )
        torch.testing.assert_close(together[row : row + 1, :length], alone, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "kind"), [case for case in TEXT_CASES if ZOO[case[0]].family == "decoder"]
)
@torch.no_grad()
def test_a_decoder_stays_causal(architecture: Architecture, model: nn.Module, kind: str) -> None:
    mixture = mixture_of(make(model, kind, seed=0), kind=kind)
    ids = architecture.inputs()["input_ids"]
    other = ids.clone()
    other[:, 4] = (other[:, 4] + 7) % 30 + 5
    mask = torch.ones_like(ids)
    before, after = (
        run(architecture, model, mixture, input_ids=given, attention_mask=mask)
        for given in (ids, other)
    )
    torch.testing.assert_close(before[:, :4], after[:, :4], atol=2e-5, rtol=1e-4)
    assert not torch.allclose(before[:, 4], after[:, 4], atol=1e-3)


@pytest.mark.parametrize("name", ["BERT", "DistilBERT", "ModernBERT", "GPT-2", "Llama"])
@pytest.mark.parametrize("kind", ["prefix", "prompt"])
@torch.no_grad()
def test_positions_and_types_that_are_given_count_from_the_text(
    architecture: Architecture, model: nn.Module, kind: str
) -> None:
    mixture = mixture_of(make(model, kind, seed=0), kind=kind)
    given = {"position_ids": torch.arange(LENGTH).expand(BATCH, -1)}
    if architecture.name == "BERT":
        given["token_type_ids"] = torch.zeros(BATCH, LENGTH, dtype=torch.long)
    torch.testing.assert_close(
        run(architecture, model, mixture, **given),
        run(architecture, model, mixture),
        atol=2e-5,
        rtol=1e-4,
    )


@pytest.mark.parametrize("name", ["DeBERTa-v2"])
@pytest.mark.parametrize("kind", ["lora", "bitfit"])
def test_rows_that_cannot_be_told_apart_are_refused(
    architecture: Architecture, model: nn.Module, kind: str
) -> None:
    mixture = mixture_of(make(model, kind, seed=0), kind=kind)
    for _, site in mixture.by_name():
        site.rows = {
            tensor: torch.from_numpy(value).expand(3, *value.shape)
            for tensor, value in site.part(0).items()
        }
    with pytest.raises(
        ExpertError,
        match=r"site 'encoder\..*': samples cannot be told apart .* choose other `sites`",
    ):
        run(architecture, model, mixture)


@pytest.mark.parametrize("name", ["BERT"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_of_alpha_in_float64(architecture: Architecture, kind: str) -> None:
    model = architecture.build().double()
    mixture = mixture_of(*(make(model, kind, seed=seed) for seed in range(3)), kind=kind).double()

    def mixed(logits: Tensor) -> Tensor:
        for _, site in mixture.by_name():
            site.alpha = lambda: torch.softmax(logits, 0)
        return run(architecture, model, mixture)[:, 0, :3]

    assert torch.autograd.gradcheck(
        mixed, (torch.tensor([0.3, -1.0, 0.7], dtype=torch.float64, requires_grad=True),)
    )


@pytest.mark.parametrize("name", ["BERT"])
@given(
    order=st.permutations(range(4)),
    logits=st.lists(st.floats(-4, 4), min_size=4, max_size=4),
    kind=st.sampled_from(sorted(KINDS)),
)
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@torch.no_grad()
def test_the_order_of_experts_does_not_matter(
    architecture: Architecture, model: nn.Module, kind: str, order: list[int], logits: list[float]
) -> None:
    experts = [make(model, kind, seed=seed) for seed in range(4)]
    outputs = []
    for chosen in (list(range(4)), order):
        mixture = mixture_of(*(experts[index] for index in chosen), kind=kind)
        for parameter in mixture.alpha_parameters():
            parameter.copy_(torch.tensor([logits[index] for index in chosen]))
        outputs.append(run(architecture, model, mixture))
    torch.testing.assert_close(*outputs, atol=2e-5, rtol=1e-5)


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
