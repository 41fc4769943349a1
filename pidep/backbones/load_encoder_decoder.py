"""Encoder-decoders from a folder or the hub."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch

from pidep.backbones.encoder import weights_digest
from pidep.backbones.encoder_decoder import EncoderDecoder
from pidep.backbones.preprocessor_config import read_preprocess
from pidep.errors import BackboneError

__all__ = ["class_of", "is_encoder_decoder", "load_encoder_decoder"]

_BLIP = ("BlipForConditionalGeneration", "BlipForQuestionAnswering")
_EXPECTED = (
    "expected a folder or a hub id of an encoder-decoder: "
    "T5, BART, Florence-2, BLIP for captions or answers"
)


def is_encoder_decoder(name: str | Path) -> bool:
    """Whether a folder or hub id holds a supported encoder-decoder.

    False if nothing is readable.
    """
    from transformers import AutoConfig

    try:
        config: Any = AutoConfig.from_pretrained(name)
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
    from safetensors import SafetensorError
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        config: Any = transformers.AutoConfig.from_pretrained(name)
        maker = class_of(config)
        if maker is None:
            heads = ", ".join(config.architectures or ["no head"])
            raise BackboneError(
                f"backbone {name!r}: {_EXPECTED}; found {config.model_type} ({heads})"
            )
        model, report = getattr(transformers, maker).from_pretrained(
            name, dtype=torch.float32, output_loading_info=True
        )
        tokenizer: Any = transformers.AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BackboneError(f"backbone {name!r}: {_EXPECTED}; {reason}") from error
    missing = sorted(report["missing_keys"])
    # transformers fills missing weights with random numbers and only warns.
    if missing:
        raise BackboneError(
            f"backbone {name!r}: {len(missing)} weights of {maker} are not there, e.g. "
            f"{missing[0]}; save the whole model"
        )
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise BackboneError(
            f"backbone {name!r}: expected a fast tokenizer, found {type(tokenizer).__name__}"
        )
    model.requires_grad_(False).eval()
    preprocess = read_preprocess(name)
    digest = weights_digest(model)
    # Another resizing gives other answers, so it is another backbone.
    if preprocess is not None:
        digest = (
            "sha256:"
            + hashlib.sha256(
                f"weights {digest}\npreprocess {preprocess.digest}".encode()
            ).hexdigest()
        )
    return EncoderDecoder(
        name=name,
        model=model,
        tokenizer_json=backend.to_str(),
        digest=digest,
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
