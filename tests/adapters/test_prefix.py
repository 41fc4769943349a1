"""Attention with a prefix, compared with its formula.

The formula is softmax(q · [k_p; k]ᵀ + [0; bias]) · [v_p; v]. No mask hides the prefix.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pidep.adapters.kinds.prefix import IDLE_BIAS, attention_with_prefix
from pidep.adapters.mixture import Mixture, attached
from pidep.adapters.places import find_sites, fresh, peft_can
from pidep.adapters.site import Tensors
from pidep.errors import ExpertError
from pidep.experts.folder import Expert, read_expert, write_expert

BATCH, HEADS, SIZE, LENGTH, PREFIX = 2, 4, 3, 5, 2


def formula(
    query: Tensor, keys: Tensor, values: Tensor, bias: Tensor, visible: Tensor, scaling: float
) -> Tensor:
    """The formula in float64, with one query head for each head of `keys`: `[B, T, heads,
    size]`.
    """
    scores = query.double() @ keys.double().transpose(2, 3) * scaling + bias.double()
    weights = torch.softmax(scores.masked_fill(~visible, -torch.inf), -1)
    return (weights @ values.double()).transpose(1, 2)


@pytest.mark.parametrize("mask", ["bool", "float", "none"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("queries", [1, LENGTH])
@pytest.mark.parametrize("own_bias", [False, True])
def test_it_equals_the_formula(
    mask: str, causal: bool, biased: bool, groups: int, queries: int, own_bias: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    heads = HEADS // groups

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    tensors = {name: draw(PREFIX, heads * SIZE).numpy() for name in ("key", "value")}
    added = draw(PREFIX) if own_bias else torch.zeros(PREFIX)
    expert: Any = {"prefix": {**tensors, **({"bias": added[None].numpy()} if own_bias else {})}}
    site = next(site for _, site in Mixture([expert], [1.0], kind="prefix").by_name())
    module: Any = nn.Identity()
    module.pidep_prefix, module.is_causal, module.num_key_value_groups = site, causal, groups
    query, key, value = (
        draw(BATCH, HEADS, queries, SIZE),
        draw(BATCH, heads, LENGTH, SIZE),
        draw(BATCH, heads, LENGTH, SIZE),
    )
    # The queries are the last tokens, as in a step of generate. Without a mask, sdpa would align
    # them with the first tokens.
    visible = torch.ones(queries, LENGTH, dtype=torch.bool)
    if causal and queries > 1:
        visible = visible.tril()
    visible = visible.expand(BATCH, 1, -1, -1).clone()
    if mask != "none":
        visible[1, :, :, 3:] = False  # padding
    given = {
        "bool": visible,
        "float": torch.zeros(visible.shape).masked_fill(~visible, -1e9),
        "none": None,
    }[mask]
    bias = draw(1, HEADS, queries, LENGTH) if biased else torch.zeros(1, HEADS, queries, LENGTH)
    options: dict[str, Any] = {"position_bias": bias} if biased else {}
    found, _ = attention_with_prefix(module, query, key, value, given, scaling=0.7, **options)

    def heads_of(name: str, own: Tensor) -> Tensor:
        prefix = (
            site.experts[name][0]
            .reshape(PREFIX, heads, SIZE)
            .transpose(0, 1)
            .expand(BATCH, -1, -1, -1)
        )
        return torch.cat([prefix, own], 2).repeat_interleave(groups, 1)

    want = formula(
        query,
        heads_of("key", key),
        heads_of("value", value),
        torch.cat([added.expand(*bias.shape[:-1], -1), bias], -1),
        nn.functional.pad(visible, (PREFIX, 0), value=True),
        0.7,
    )
    torch.testing.assert_close(found.double(), want, atol=1e-5, rtol=1e-5)


def test_rows_that_do_not_divide_the_batch_are_refused() -> None:
    expert = {"prefix": {name: np.zeros((PREFIX, SIZE), np.float32) for name in ("key", "value")}}
    site = next(site for _, site in Mixture([expert], [1.0], kind="prefix").by_name())
    site.rows = {name: torch.zeros(2, PREFIX, SIZE) for name in ("key", "value")}
    module: Any = nn.Identity()
    module.pidep_prefix, module.is_causal = site, False
    states = torch.zeros(3, 1, LENGTH, SIZE)
    with pytest.raises(ExpertError, match=r"3 rows at an attention layer, 2 samples"):
        attention_with_prefix(module, states, states, states, None)


# Prefixes side by side: the mixture on outputs.


def layer(*experts: Tensors, logits: list[float] | None = None, on_outputs: bool = True) -> Any:
    """An attention layer with a mixture attached."""
    mixture = Mixture(
        [{"layer": expert} for expert in experts],
        [1.0] * len(experts),
        kind="prefix",
        on_outputs=on_outputs,
    )
    site = next(site for _, site in mixture.by_name())
    if logits is not None:
        with torch.no_grad():
            site.alpha_logits.copy_(torch.tensor(logits))
    module: Any = nn.Identity()
    module.pidep_prefix, module.is_causal, module.num_key_value_groups = site, False, 1
    return module


def drawn(seed: int, *, length: int = PREFIX, **more: np.ndarray) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        **{
            name: rng.normal(size=(length, HEADS * SIZE)).astype(np.float32)
            for name in ("key", "value")
        },
        **more,
    }


def states(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    query, key, value = (
        torch.randn(BATCH, HEADS, LENGTH, SIZE, generator=generator, dtype=dtype) for _ in range(3)
    )
    return query, key, value


def attend(module: Any) -> Tensor:
    output: Tensor = attention_with_prefix(module, *states(), None, scaling=0.7)[0]
    return output


def test_alpha_is_the_share_of_the_attention_an_expert_draws() -> None:
    alpha, experts = torch.tensor([0.2, 0.5, 0.3]), [drawn(seed) for seed in range(3)]
    found = attend(layer(*experts, logits=alpha.log().tolist()))
    query, key, value = (tensor.double() for tensor in states())

    def split(name: str) -> Tensor:
        tokens = torch.from_numpy(np.concatenate([expert[name] for expert in experts])).double()
        return tokens.reshape(-1, HEADS, SIZE).transpose(0, 1).expand(BATCH, -1, -1, -1)

    drawn_by_text = torch.exp(query @ key.transpose(2, 3) * 0.7)
    drawn_by_prefix = torch.exp(
        query @ split("key").transpose(2, 3) * 0.7
    ) * alpha.double().repeat_interleave(PREFIX)
    total = drawn_by_text.sum(-1, keepdim=True) + drawn_by_prefix.sum(-1, keepdim=True)
    want = (drawn_by_text @ value + drawn_by_prefix @ split("value")) / total
    torch.testing.assert_close(found.double(), want.transpose(1, 2), atol=1e-5, rtol=1e-5)


def test_the_gradient_of_alpha_side_by_side_in_float64() -> None:
    module = layer(*(drawn(seed) for seed in range(3)))
    site = module.pidep_prefix.double()
    site.arena_and_site[0].double()

    def run(logits: Tensor) -> Tensor:
        site._parameters["alpha_logits"] = logits
        output: Tensor = attention_with_prefix(module, *states(torch.float64), None, scaling=0.7)[0]
        return output

    assert torch.autograd.gradcheck(
        run, (torch.tensor([0.3, -1.0, 0.7], dtype=torch.float64, requires_grad=True),)
    )


def test_prefixes_of_different_numbers_side_by_side_can_be_mixed() -> None:
    folded = layer(drawn(0), drawn(1), logits=[0.3, -0.4]).pidep_prefix.folded()
    assert folded["bias"].shape == (2, PREFIX)
    found, flat = (layer(expert, drawn(2), logits=[0.5, 0.1]) for expert in (folded, drawn(0)))
    assert found.pidep_prefix.positions == PREFIX
    together = layer(
        drawn(0),
        drawn(1),
        drawn(2),
        logits=[0.5 + folded["bias"][0, 0], 0.5 + folded["bias"][1, 0], 0.1],
    )
    torch.testing.assert_close(attend(found), attend(together), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(attend(found), attend(flat), atol=1e-3)


def test_idle_tokens_are_not_folded() -> None:
    folded = layer(layer(drawn(0), drawn(1)).pidep_prefix.folded(), drawn(2)).pidep_prefix.folded()
    assert folded["key"].shape == (3 * PREFIX, HEADS * SIZE)
    assert folded["bias"].shape == (3, PREFIX)
    assert folded["bias"].min() > IDLE_BIAS / 2


@pytest.mark.parametrize("shape", [(3,), (1, 3), (2, 2), (2, 1, 1)])
def test_a_bias_of_another_length_is_refused(shape: tuple[int, ...], tiny: Any) -> None:
    start = fresh(tiny.model, find_sites(tiny.model, kind="prefix"), kind="prefix", rank=PREFIX)
    broken = {
        site: {**tensors, "bias": np.zeros(shape, np.float32)} for site, tensors in start.items()
    }
    for experts in ([broken], [start, broken]):
        with pytest.raises(
            ExpertError,
            match=(
                r"site '.*': bias \(.*\) for 2 virtual tokens, expected \[n, P\] of them; train it "
                r"again"
            ),
        ):
            Mixture(experts, [1.0] * len(experts), kind="prefix")


@pytest.mark.parametrize("kind", ["adapter", "prefix", "prompt"])
def test_a_tensor_that_is_missing_is_named(kind: str, tiny: Any) -> None:
    start = fresh(tiny.model, find_sites(tiny.model, kind=kind), kind=kind, rank=PREFIX)
    gone = next(iter(next(iter(start.values()))))
    broken = {
        site: {"w" if name == gone else name: value for name, value in tensors.items()}
        for site, tensors in start.items()
    }
    with pytest.raises(
        ExpertError,
        match=rf"site '.*': the expert has .*w, expected .*{gone}.* of a {kind}; train it again",
    ):
        encoded(tiny, Mixture([broken], [1.0], kind=kind))
    with pytest.raises(
        ExpertError,
        match=rf"site '.*': one expert has .*{gone}.* and another .*w; train them as one kind",
    ):
        Mixture([start, broken], [1.0] * 2, kind=kind)


def test_prefixes_side_by_side_are_never_mixed_on_parameters() -> None:
    folded = layer(drawn(0), drawn(1)).pidep_prefix.folded()
    asked, given = layer(drawn(2), folded, on_outputs=False), layer(drawn(2), folded)
    torch.testing.assert_close(attend(asked), attend(given))
    assert not layer(drawn(2), drawn(3), on_outputs=False).pidep_prefix.on_outputs


def test_an_unknown_tensor_is_refused(tiny: Any) -> None:
    start = fresh(tiny.model, find_sites(tiny.model, kind="prefix"), kind="prefix", rank=PREFIX)
    broken = {
        site: {**tensors, "weight": np.zeros(PREFIX, np.float32)} for site, tensors in start.items()
    }
    with pytest.raises(
        ExpertError,
        match=r"the expert has key, value, weight, expected key, value of a prefix; train it again",
    ):
        encoded(tiny, Mixture([broken], [1.0], kind="prefix"))


def encoded(backbone: Any, mixture: Mixture) -> Tensor:
    with torch.no_grad(), attached(backbone.model, mixture):
        found: Tensor = backbone.encode(
            ["a good film", "a very bad one, all in all"], max_length=16
        )
    return found


def random_experts(backbone: Any, count: int) -> list[Mapping[str, Tensors]]:
    start = fresh(
        backbone.model, find_sites(backbone.model, kind="prefix"), kind="prefix", rank=PREFIX
    )
    rng = np.random.default_rng(0)
    return [
        {
            site: {
                name: rng.normal(size=value.shape).astype(np.float32)
                for name, value in part.items()
            }
            for site, part in start.items()
        }
        for _ in range(count)
    ]


def test_a_mixture_side_by_side_goes_through_a_file_which_peft_could_not_read(
    tiny: Any, tmp_path: Path
) -> None:
    mixture = Mixture(random_experts(tiny, 3), [1.0] * 3, kind="prefix", on_outputs=True)
    sites = mixture.folded()
    expert = Expert(
        name="mixed",
        backbone_digest=tiny.digest,
        sites=dict(sites),
        scaling=1.0,
        labels=("a",),
        label_texts=("a",),
        label_embeddings=np.ones((1, 2), np.float32),
        logit_scale=20.0,
        max_length=16,
        kind="prefix",
        peft=peft_can(tiny.model, list(sites), kind="prefix"),
    )
    assert expert.peft
    assert replace(expert, sites=dict(random_experts(tiny, 1)[0])).in_peft_format
    assert not expert.in_peft_format
    again = read_expert(write_expert(expert, tmp_path / "mixed"))
    assert again.digest == expert.digest
    # The text stands behind P virtual tokens, not behind 3 P of them, as it did in training.
    torch.testing.assert_close(
        encoded(tiny, Mixture.of([again])), encoded(tiny, mixture), atol=1e-5, rtol=0
    )


def test_every_row_has_its_own_bias(tiny: Any) -> None:
    """Per-sample gradients depend on this."""
    experts = [
        Mixture(random_experts(tiny, 2), [1.0] * 2, kind="prefix", on_outputs=True).folded()
        for _ in range(2)
    ]
    for tensors in experts[1].values():
        tensors["bias"] = tensors["bias"] + np.float32(1.5)
    looped = torch.stack(
        [
            encoded(tiny, Mixture([expert], [1.0], kind="prefix"))[row]
            for row, expert in enumerate(experts)
        ]
    )
    mixture = Mixture(experts[:1], [1.0], kind="prefix")
    for name, site in mixture.by_name():
        site.rows = {
            tensor: torch.stack([torch.from_numpy(expert[name][tensor]) for expert in experts])
            for tensor in experts[0][name]
        }
    torch.testing.assert_close(encoded(tiny, mixture), looped, atol=1e-5, rtol=0)
