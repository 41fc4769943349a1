"""Tiny random CLIP and SigLIP as hub folders: model, tokenizer and image preprocessing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

WORDS = [
    *("a", "photo", "of", "the", "red", "green", "blue", "big", "small", "cat", "dog"),
    *("not", "good", "bad", "film", "was", "very"),
]
SIZE = 8
_TEXT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 12,
}
_IMAGE = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": SIZE,
    "patch_size": 4,
}
SPECIAL = ["<unk>", "<pad>", "<s>", "</s>"]


def tokenizer(*, closes: bool = True) -> Any:
    """A tokenizer of words that puts `<s>` before a text and `</s>` behind it."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *WORDS])}
    found = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    found.pre_tokenizer = pre_tokenizers.Whitespace()
    if closes:
        found.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 2), ("</s>", 3)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=found, unk_token="<unk>", pad_token="<pad>")


def save_two_towers(
    folder: Path, model: str = "CLIP", *, closes: bool = True, **vision: Any
) -> Path:
    """Write a checkpoint of `CLIP` or `SigLIP`."""
    import transformers

    torch.manual_seed(0)
    own = {"vocab_size": len(SPECIAL) + len(WORDS), "bos_token_id": 2, "pad_token_id": 1}
    text = {**_TEXT, **own, "eos_token_id": 3}
    if model == "CLIP":
        config: Any = transformers.CLIPConfig(
            text_config=text, vision_config={**_IMAGE, **vision}, projection_dim=12
        )
        made: Any = transformers.CLIPModel(config)
    else:
        config = transformers.SiglipConfig(
            text_config={**text, "projection_size": 16}, vision_config={**_IMAGE, **vision}
        )
        made = transformers.SiglipModel(config)
    for parameter in made.parameters():
        if not parameter.any():  # biases that start at zero would hide mistakes
            torch.nn.init.normal_(parameter, std=0.02)
    made.save_pretrained(folder)
    tokenizer(closes=closes).save_pretrained(folder)
    sides = {"height": SIZE, "width": SIZE}
    normal = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    values = {"size": sides, "resample": 3, "do_resize": True, "do_normalize": True, **normal}
    (folder / "preprocessor_config.json").write_text(json.dumps(values))
    return folder
