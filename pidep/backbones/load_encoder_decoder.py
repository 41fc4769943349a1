"""Encoder-decoders from a folder or the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pidep.backbones.checkpoint import (
    backbone_digest,
    check_finite,
    check_vocabulary,
    load_config,
    load_model,
    load_tokenizer,
    require_place,
    weights_digest,
)
from pidep.backbones.encoder_decoder import EncoderDecoder
from pidep.backbones.preprocessor_config import read_preprocess
from pidep.errors import BackboneError

__all__ = ["class_of", "is_encoder_decoder", "load_encoder_decoder"]

_BLIP = ("BlipForConditionalGeneration", "BlipForQuestionAnswering")
_EXPECTED = (
    "a folder or a hub id of an encoder-decoder: T5, BART, Florence-2, BLIP for captions or answers"
)


def is_encoder_decoder(name: str | Path) -> bool:
    """Whether a folder or hub id holds a supported encoder-decoder.

    False if nothing is readable.
    """
    from transformers import AutoConfig

    try:
        config: Any = AutoConfig.from_pretrained(name, trust_remote_code=False)
    except Exception:  # The loader that comes next reports the fault.
        return False
    return class_of(config) is not None


def load_encoder_decoder(name: str) -> EncoderDecoder:
    """Load and freeze an encoder-decoder from a folder or a hub id.

    Raises:
        BackboneError: nothing loadable is there, weights are missing, or it is no encoder-decoder
            with a fast tokenizer.
    """
    import transformers

    require_place(name, name=name)
    config = load_config(name, name=name, expected=_EXPECTED)
    maker = class_of(config)
    if maker is None:
        heads = ", ".join(config.architectures or ["no head"])
        raise BackboneError(
            f"backbone {name!r}: expected {_EXPECTED}; found {config.model_type} ({heads})"
        )
    model = load_model(getattr(transformers, maker), name, name=name, expected=_EXPECTED)
    tokenizer = load_tokenizer(name, name=name, expected=_EXPECTED)
    check_vocabulary(model, tokenizer, name=name)
    check_finite(model, name=name)
    model.requires_grad_(False).eval()
    preprocess = read_preprocess(name)
    tokenizer_json = tokenizer.backend_tokenizer.to_str()
    images = () if preprocess is None else (f"preprocess {preprocess.digest}",)
    return EncoderDecoder(
        name=name,
        model=model,
        tokenizer_json=tokenizer_json,
        digest=backbone_digest(weights_digest(model), config, tokenizer_json, *images),
        preprocess=preprocess,
    )


def class_of(config: Any) -> str | None:
    """Name of the transformers class that generates with a config; None for other models."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES

    # Neither is in transformers' table of sequence-to-sequence models.
    if config.model_type == "florence2":
        return "Florence2ForConditionalGeneration"
    if config.model_type == "blip":
        return next((name for name in config.architectures or () if name in _BLIP), None)
    found = MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
    return (
        found if isinstance(found, str) and getattr(config, "is_encoder_decoder", False) else None
    )
