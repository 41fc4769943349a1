"""CLIP and SigLIP from a folder or the hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pidep.backbones.checkpoint import (
    arithmetic_of,
    backbone_digest,
    check_finite,
    check_vocabulary,
    load_model,
    load_tokenizer,
    require_place,
    weights_digest,
)
from pidep.backbones.preprocessor_config import read_preprocess
from pidep.backbones.two_towers import TwoTowers
from pidep.errors import BackboneError

__all__ = ["is_two_towers", "load_two_towers"]

_CLASSES = {"clip": "CLIPModel", "siglip": "SiglipModel"}
_EXPECTED = "a folder or a hub id of CLIP or SigLIP"
_LARGEST_IS_END = 2
"""CLIP checkpoints that say 2 for the end-of-text token are read at their largest token number."""


def is_two_towers(name: str | Path) -> bool:
    """Whether a folder or hub id holds CLIP or SigLIP; False if nothing is readable."""
    from transformers import AutoConfig

    try:
        config: Any = AutoConfig.from_pretrained(name, trust_remote_code=False)
    except Exception:  # The loader that comes next reports the fault.
        return False
    return config.model_type in _CLASSES


def load_two_towers(name: str) -> TwoTowers:
    """Load and freeze CLIP or SigLIP from a folder or a hub id.

    Raises:
        BackboneError: nothing loadable is there, weights, tokenizer or image preprocessing are
            missing, or the tokenizer closes no text.
    """
    import transformers

    require_place(name, name=name)
    config: Any = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False)
    cls = getattr(transformers, _CLASSES[config.model_type])
    model = load_model(cls, name, name=name, expected=_EXPECTED)
    tokenizer = load_tokenizer(name, name=name, expected=_EXPECTED)
    check_vocabulary(model.text_model, tokenizer, name=name)
    check_finite(model, name=name)
    model.requires_grad_(False).eval()
    preprocess = read_preprocess(name)
    if preprocess is None:
        raise BackboneError(
            f"backbone {name!r}: sees images and has no preprocessor_config.json; save its "
            "processor beside it"
        )
    padded_length = None
    if config.model_type == "siglip":
        # SigLIP reads a text at its last place and was trained on texts of one length.
        padded_length = int(config.text_config.max_position_embeddings)
        tokenizer.backend_tokenizer.enable_padding(pad_id=int(config.text_config.pad_token_id))
    else:
        _require_end(tokenizer, int(config.text_config.eos_token_id), name=name)
    tokens = str(tokenizer.backend_tokenizer.to_str())
    towers = [arithmetic_of(part) for part in (config.text_config, config.vision_config)]
    facts = (
        f"towers {json.dumps(towers, sort_keys=True, default=str)}",
        f"preprocess {preprocess.digest}",
        f"padded to {padded_length}",
    )
    digest = backbone_digest(weights_digest(model), config, tokens, *facts)
    return TwoTowers(name, model, tokens, preprocess, digest, padded_length)


def _require_end(tokenizer: Any, end: int, *, name: str) -> None:
    """Refuse a tokenizer whose texts have no end-of-text token: CLIP reads a text there.

    Raises:
        BackboneError: with the token number that is expected.
    """
    ids = tokenizer.backend_tokenizer.encode("a").ids
    closes = ids[-1] == (max(ids) if end == _LARGEST_IS_END else end)
    if not closes or len(ids) < 2:
        raise BackboneError(
            f"backbone {name!r}: its tokenizer does not close a text with the end-of-text token "
            f"{end}, where CLIP reads it; copy the tokenizer's files from the checkpoint"
        )
