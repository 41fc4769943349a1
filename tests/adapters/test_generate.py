"""Experts during text generation: with and without the KV cache, in a padded batch and alone."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from pidep.adapters.kinds import KINDS
from pidep.adapters.mixture import attached
from pidep.errors import ExpertError
from tests.adapters.small_experts import make, mixture_of
from tests.adapters.zoo import FITS, LENGTH, ZOO

GENERATORS = {
    "GPT-2": "GPT2LMHeadModel",
    "Llama": "LlamaForCausalLM",
    "Qwen2": "Qwen2ForCausalLM",
    "OPT": "OPTForCausalLM",
    "T5": "T5ForConditionalGeneration",
    "BART": "BartForConditionalGeneration",
    "Florence-2": "Florence2ForConditionalGeneration",
    "BLIP, captions": "BlipForConditionalGeneration",
}
CASES = [(name, kind) for name in GENERATORS for kind in KINDS if isinstance(FITS[name][kind], int)]
NEW = 4


@cache
def generator(name: str) -> Any:
    import transformers

    torch.manual_seed(0)
    config = ZOO[name].config()
    model = getattr(transformers, GENERATORS[name])._from_config(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)  # large weights make greedy choices clear
    model.generation_config.update(forced_eos_token_id=None, eos_token_id=None, pad_token_id=1)
    return model.requires_grad_(False).eval()


def inputs(name: str) -> dict[str, Tensor]:
    """Texts of 7, 5 and 3 tokens. A decoder continues on the right, so its texts are padded on the
    left.
    """
    found = {key: value for key, value in ZOO[name].inputs().items() if key != "decoder_input_ids"}
    if name == "BLIP, captions":  # BLIP puts its own first token before the text
        return {
            key: value if key == "pixel_values" else value[:, :3] for key, value in found.items()
        }
    if ZOO[name].family == "decoder":
        for row, length in enumerate(found["attention_mask"].sum(1).tolist()):
            for tensor in found.values():
                tensor[row] = tensor[row].roll(LENGTH - length)
    return found


def third(name: str, given: dict[str, Tensor]) -> dict[str, Tensor]:
    """The third text without its padding, and its image."""
    length = int(given["attention_mask"][2].sum())
    at = slice(-length, None) if ZOO[name].family == "decoder" else slice(0, length)
    return {
        key: value[2:] if key == "pixel_values" else value[2:, at] for key, value in given.items()
    }


def generate(name: str, given: dict[str, Tensor], **options: Any) -> Tensor:
    """`[B, NEW, V]` logits of the chosen tokens."""
    found = generator(name).generate(
        **given,
        max_new_tokens=NEW,
        min_new_tokens=NEW,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
        **options,
    )
    return torch.stack(found.logits, 1)


def assert_same(left: Tensor, right: Tensor) -> None:
    torch.testing.assert_close(left, right, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("name", "kind"), CASES)
@torch.no_grad()
def test_with_a_cache_the_same_as_without_and_as_alone(name: str, kind: str) -> None:
    model, given = generator(name), inputs(name)
    bare = generate(name, given)
    with attached(model, mixture_of(make(model, kind, seed=0, scale=1.0), kind=kind)):
        cached = generate(name, given, use_cache=True)
        assert_same(cached, generate(name, given, use_cache=False))
        assert_same(cached[2:], generate(name, third(name, given)))
    assert (cached - bare).abs().amax() > 0.01


@torch.no_grad()
def test_logits_and_losses_are_of_the_text_alone() -> None:
    model, given = generator("GPT-2"), inputs("GPT-2")
    with attached(model, mixture_of(make(model, "prompt", seed=0), kind="prompt")):
        output = model(**given, labels=given["input_ids"], output_hidden_states=True)
    assert output.logits.shape[:2] == given["input_ids"].shape
    assert {hidden.shape[1] for hidden in output.hidden_states} == {LENGTH}
    assert output.loss.isfinite()


@torch.no_grad()
def test_a_prompt_in_a_static_cache_is_refused() -> None:
    model, given = generator("Llama"), inputs("Llama")
    with (
        attached(model, mixture_of(make(model, "prompt", seed=0), kind="prompt")),
        pytest.raises(ExpertError, match=r"generate with a dynamic cache"),
    ):
        generate("Llama", given, cache_implementation="static")


@torch.no_grad()
def test_a_prefix_in_a_static_cache_is_the_same() -> None:
    model, given = generator("Llama"), inputs("Llama")
    with attached(model, mixture_of(make(model, "prefix", seed=0), kind="prefix")):
        assert_same(
            generate("Llama", given, cache_implementation="static"), generate("Llama", given)
        )
