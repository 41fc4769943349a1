"""Tiny random encoder-decoders as hub folders: model, tokenizer, and image preprocessing."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import torch

from pidep.backbones.encoder_decoder import EncoderDecoder
from pidep.backbones.load_encoder_decoder import load_encoder_decoder
from pidep.inputs.row import Input, Row

SPECIAL = ["<unk>", "<pad>", "<s>", "</s>", "<image>"]
WORDS = [
    "a",
    "the",
    "is",
    "what",
    "colour",
    "red",
    "green",
    "blue",
    "big",
    "small",
    "cat",
    "dog",
    "yes",
    "no",
    "one",
    "two",
    "of",
    "not",
]
LOCATIONS = [f"<loc_{place}>" for place in range(1000)]
CLASSES = {
    "T5": "T5ForConditionalGeneration",
    "BART": "BartForConditionalGeneration",
    "Florence-2": "Florence2ForConditionalGeneration",
    "BLIP captions": "BlipForConditionalGeneration",
    "BLIP answers": "BlipForQuestionAnswering",
}
TEXTS = ("T5", "BART")
IMAGES = ("Florence-2", "BLIP captions", "BLIP answers")
SIZE = 8
WIDTH = 32


DAVIT = {
    "depths": [1, 1],
    "patch_size": [3, 3],
    "patch_stride": [2, 2],
    "patch_padding": [1, 1],
    "patch_prenorm": [False, True],
    "embed_dim": [8, 16],
    "num_heads": [1, 2],
    "num_groups": [1, 2],
    "window_size": 2,
    "drop_path_rate": 0.0,
    "max_position_embeddings": 60,  # the probe that finds sites uses an image of 224 pixels
}
"""Florence-2's images. Its config does not name an image size."""


def words_of(name: str) -> list[str]:
    """The vocabulary. Only Florence-2 has box tokens."""
    return [*SPECIAL, *WORDS, *(LOCATIONS if name == "Florence-2" else ())]


_TEXT = {"pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3}
_BART = {
    **_TEXT,
    "decoder_start_token_id": 3,
    "d_model": WIDTH,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 40,
    "dropout": 0.0,
}


def config_of(name: str) -> Any:
    """A tiny configuration."""
    import transformers

    size = {"vocab_size": len(words_of(name))}
    if name == "T5":
        sizes = {
            "d_model": WIDTH,
            "d_kv": 16,
            "d_ff": 48,
            "num_layers": 2,
            "num_heads": 2,
            "dropout_rate": 0.0,
        }
        return transformers.T5Config(
            **size, pad_token_id=1, eos_token_id=3, decoder_start_token_id=1, **sizes
        )
    if name == "BART":
        return transformers.BartConfig(**size, **_BART)
    if name == "Florence-2":
        davit = {**DAVIT, "projection_dim": WIDTH}
        return transformers.Florence2Config(
            text_config={"model_type": "bart", **size, **_BART},
            vision_config=davit,
            image_token_id=4,
        )
    text = {
        **size,
        **_TEXT,
        "hidden_size": WIDTH,
        "encoder_hidden_size": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "max_position_embeddings": 40,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "sep_token_id": 3,
    }
    vision = {
        "hidden_size": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "image_size": SIZE,
        "patch_size": 4,
    }
    return transformers.BlipConfig(text_config=text, vision_config=vision)


def save_tokenizer(folder: Path, name: str) -> None:
    """A tokenizer of whole words."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocab = {word: number for number, word in enumerate(words_of(name))}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens([word for word in vocab if word.startswith("<")])
    template = "$A </s>" if name == "T5" else "<s> $A </s>"
    tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[("<s>", 2), ("</s>", 3)]
    )
    names = {"unk_token": "<unk>", "pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)


def save_model(folder: Path, name: str) -> Path:
    """The same random weights every time, large enough for clear answers."""
    import transformers

    torch.manual_seed(0)
    model = getattr(transformers, CLASSES[name])._from_config(config_of(name))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
        elif not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    model.save_pretrained(folder)
    save_tokenizer(folder, name)
    if name in IMAGES:
        values = {
            "size": {"height": SIZE, "width": SIZE},
            "resample": 3,
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
        }
        (folder / "preprocessor_config.json").write_text(json.dumps(values))
    return folder


@cache
def folder_of(name: str) -> Path:
    """A folder with the model, written once per test run."""
    return save_model(Path(mkdtemp(prefix="tiny-")), name)


@cache
def loaded(name: str) -> EncoderDecoder:
    """One model for all tests. Every test leaves it unchanged."""
    return load_encoder_decoder(str(folder_of(name)))


def picture(seed: int) -> Any:
    """`[12, 9, 3]` uint8."""
    return np.random.default_rng(seed).integers(0, 256, (12, 9, 3), dtype=np.uint8)


def rows_of(name: str) -> list[Input]:
    """Four rows of different lengths, with images where the model reads them."""
    texts = ["what colour is the cat", "red", "is the dog big and the cat small", "not one"]
    if name in TEXTS:
        return list(texts)
    images = [picture(seed) for seed in range(4)]
    if name == "Florence-2":  # one image without a text, and one text without an image
        return [Row(texts[0], images[0]), Row("", images[1]), texts[2], Row(texts[3], images[3])]
    return [Row(text, image) for text, image in zip(texts, images, strict=True)]


CANDIDATES = ["yes", "no", "the big cat", "red green blue", "one"]
