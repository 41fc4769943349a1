"""The architectures of transformers that the tests cover. A test keeps this list true."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

__all__ = ["EVERY", "TESTED", "Architecture"]

EVERY = ("lora", "adapter", "prefix", "prompt", "bitfit")


class Architecture(NamedTuple):
    """An architecture, its family, and its tested kinds of expert.

    Tested means: attached, trained, saved, loaded and detached.
    """

    name: str
    family: str
    kinds: tuple[str, ...]


TESTED: Mapping[str, Architecture] = {
    "bert": Architecture("BERT", "encoder", EVERY),
    "roberta": Architecture("RoBERTa", "encoder", EVERY),
    "distilbert": Architecture("DistilBERT", "encoder", EVERY),
    "electra": Architecture("ELECTRA", "encoder", EVERY),
    "deberta-v2": Architecture("DeBERTa-v2", "encoder", ("lora", "adapter", "prompt", "bitfit")),
    "modernbert": Architecture("ModernBERT", "encoder", ("lora", "adapter", "prefix", "prompt")),
    "mpnet": Architecture("MPNet", "encoder", ("lora", "adapter", "prompt", "bitfit")),
    "gpt2": Architecture("GPT-2", "decoder", EVERY),
    "llama": Architecture("Llama", "decoder", ("lora", "adapter", "prefix", "prompt")),
    "qwen2": Architecture("Qwen2", "decoder", EVERY),
    "opt": Architecture("OPT", "decoder", EVERY),
    "t5": Architecture("T5", "encoder-decoder", ("lora", "adapter", "prefix", "prompt")),
    "bart": Architecture("BART", "encoder-decoder", EVERY),
    "florence2": Architecture("Florence-2", "image and text to text", EVERY),
    "blip": Architecture(
        "BLIP", "two towers, or image and text to text", ("lora", "adapter", "prompt", "bitfit")
    ),
    "vit": Architecture("ViT", "vision", EVERY),
    "dinov2": Architecture("DINOv2", "vision", EVERY),
    "swin": Architecture("Swin", "vision", ("lora", "adapter", "prefix", "bitfit")),
    "clip": Architecture("CLIP", "two towers", EVERY),
    "siglip": Architecture("SigLIP", "two towers", EVERY),
    "vilt": Architecture("ViLT", "fusion", ("lora", "adapter", "prompt", "bitfit")),
    "flava": Architecture("FLAVA", "fusion", ("lora", "adapter", "prompt", "bitfit")),
}
"""By `model_type` of a config. Other architectures work wherever sites are found, untested."""
