"""Checkpoints of transformers, loaded whole or refused.

transformers is lenient: it draws missing weights at random, makes a tokenizer without words where
there are no files, and offers to run a checkpoint's own code. Each gives answers that look right.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pidep.adapters.places import loading_fault
from pidep.adapters.positions import room_of
from pidep.errors import BackboneError

__all__ = [
    "arithmetic_of",
    "backbone_digest",
    "check_bare",
    "check_finite",
    "check_vocabulary",
    "is_read",
    "load_config",
    "load_model",
    "load_tokenizer",
    "position_limit",
    "require_place",
    "weights_digest",
]

_WRAPPERS = r"^(?:_orig_mod\.|module\.|(?:0\.)?auto_model\.)+"
"""Prefixes that torch.compile, data parallelism and sentence-transformers put before names."""
_ARITHMETIC = (
    *("model_type", "hidden_act", "activation_function", "num_attention_heads"),
    *("layer_norm_eps", "norm_eps", "position_embedding_type"),
)
"""Entries of a config that change the arithmetic and not the shape of a weight."""
_NOT_TEXT_TO_IDS = ("version", "truncation", "padding")
"""Entries of tokenizer.json that do not decide token ids: texts are cut and padded by pidep."""


# Loading.


def require_place(source: str | Path, *, name: str) -> None:
    """Refuse the name of a folder that is not there.

    Raises:
        BackboneError: a hub id is `name` or `owner/name`, so this name can only be a folder's.
    """
    text = str(source)
    if (text.startswith((".", "~", os.sep)) or text.count("/") > 1) and not Path(text).exists():
        raise BackboneError(
            f"backbone {name!r}: no such folder; give the place where it lies now as `backbone`"
        )


def load_config(source: str | Path, *, name: str, expected: str, subfolder: str = "") -> Any:
    """The config of a folder or hub id; raises as `load_model`."""
    from transformers import AutoConfig

    def load() -> Any:
        return AutoConfig.from_pretrained(source, subfolder=subfolder, trust_remote_code=False)

    return _loaded(load, name, expected)


def load_model(
    cls: Any, source: str | Path, *, name: str, expected: str, subfolder: str = ""
) -> Any:
    """A model in float32, with every weight that decides an answer from the checkpoint.

    Args:
        cls: the class of transformers.
        expected: what the caller needs, for the message.

    Raises:
        BackboneError: nothing loadable is there, it needs code of its own, or weights are missing.
    """
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]

    def load(key_mapping: dict[str, str] | None = None) -> Any:
        return cls.from_pretrained(
            source,
            subfolder=subfolder,
            dtype=torch.float32,
            output_loading_info=True,
            key_mapping=key_mapping,
            trust_remote_code=False,
        )

    before = transformers_logging.get_verbosity()
    # Its table of missing weights would come before pidep's one line.
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        model, report = _loaded(load, name, expected)
        if _missing(report):
            model, report = _loaded(lambda: load({_WRAPPERS: ""}), name, expected)
    finally:
        transformers_logging.set_verbosity(before)
    missing = _missing(report)
    if missing:
        others = sorted(map(str, report["unexpected_keys"]))
        raise BackboneError(
            f"backbone {name!r}: {len(missing)} weights of {type(model).__name__} are not there, "
            f"e.g. {missing[0]}"
            + (f" (the checkpoint has {len(others)} others, e.g. {others[0]})" if others else "")
            + "; save the whole model with save_pretrained"
        )
    check_bare(model, name=name)
    return model


def load_tokenizer(source: str | Path, *, name: str, expected: str, subfolder: str = "") -> Any:
    """The fast tokenizer of a folder or hub id.

    Raises:
        BackboneError: there is none, it is not a fast one, or it knows no word.
    """
    from transformers import AutoTokenizer

    def load(folder: str) -> Any:
        return AutoTokenizer.from_pretrained(source, subfolder=folder, trust_remote_code=False)

    tokenizer: Any = _loaded(lambda: load(subfolder), name, expected)
    if subfolder and not _words(tokenizer):
        # Old repositories of sentence-transformers keep it beside the transformer, others above.
        tokenizer = _loaded(lambda: load(""), name, expected)
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise BackboneError(
            f"backbone {name!r}: expected a fast tokenizer, found {type(tokenizer).__name__}"
        )
    if not _words(tokenizer):
        raise BackboneError(
            f"backbone {name!r}: its tokenizer knows no word, only special tokens; copy the "
            "tokenizer's files (tokenizer.json and tokenizer_config.json) beside the weights"
        )
    return tokenizer


def check_vocabulary(model: Any, tokenizer: Any, *, name: str) -> None:
    """Refuse a tokenizer with token numbers that the model has no embedding for.

    Raises:
        BackboneError: with both numbers.
    """
    embeddings = model.get_input_embeddings()
    rows = getattr(getattr(embeddings, "weight", None), "shape", (0,))[0]
    tokens = max(tokenizer.backend_tokenizer.get_vocab(with_added_tokens=True).values()) + 1
    if rows and tokens > rows:
        raise BackboneError(
            f"backbone {name!r}: the tokenizer has {tokens} tokens, the model has {rows} "
            "embeddings; call resize_token_embeddings and train the new ones, or remove the "
            "added tokens"
        )


def check_bare(model: Any, *, name: str) -> None:
    """Refuse a model with an adapter of PEFT in it.

    transformers loads the adapter of a folder together with its base, which may lie elsewhere.

    Raises:
        BackboneError: the message says where adapters belong.
    """
    if getattr(model, "_hf_peft_config_loaded", False) or hasattr(model, "peft_config"):
        raise BackboneError(
            f"backbone {name!r}: holds an adapter of PEFT; give its base as `backbone`, and make "
            "an expert of the adapter with pidep import"
        )


def check_finite(model: nn.Module, *, name: str) -> None:
    """Refuse weights that are NaN or Inf.

    Raises:
        BackboneError: the message names the first.
    """
    for weight, value in model.state_dict().items():
        if value.is_floating_point() and is_read(weight) and not _all_finite(value):
            raise BackboneError(
                f"backbone {name!r}: {weight} holds NaN or Inf; save the model again from a "
                "checkpoint that works"
            )


def _words(tokenizer: Any) -> bool:
    """Whether a tokenizer knows tokens beside its special ones."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return True  # not a fast tokenizer; that is refused elsewhere
    return bool(set(backend.get_vocab()) - set(tokenizer.all_special_tokens))


def _missing(report: dict[str, Any]) -> list[str]:
    return sorted(name for name in map(str, report["missing_keys"]) if is_read(name))


def _loaded(load: Callable[[], Any], name: str, expected: str) -> Any:
    """What `load` gives; every fault of a checkpoint is one line."""
    try:
        return load()
    except Exception as error:  # A checkpoint from anywhere can fail in any way.
        raise BackboneError(
            f"backbone {name!r}: expected {expected}; {loading_fault(error)}"
        ) from error


# Facts that decide an answer.


def is_read(weight: str) -> bool:
    """Whether a weight decides the last hidden states.

    Nothing in pidep reads a pooler's output. Checkpoints of masked-language models have none, and
    transformers draws one at random at every load.
    """
    return weight.partition(".")[0] != "pooler"


def position_limit(model: nn.Module) -> int:
    """Longest text of an encoder, in tokens; 512 where neither config nor table says."""
    config: Any = model.config
    declared = getattr(config, "max_position_embeddings", None)
    # Some configs say -1 for "no limit". RoBERTa's table begins behind the padding index.
    found = [one for one in (declared, room_of(model)) if isinstance(one, int) and one > 0]
    return min(found, default=512)


def _all_finite(value: torch.Tensor) -> bool:
    # Not `isfinite(value)`: its copies need as much memory as a large embedding.
    return not value.numel() or all(math.isfinite(end) for end in map(float, value.aminmax()))


def weights_digest(model: nn.Module, *, only: Callable[[str], bool] = lambda _: True) -> str:
    """SHA-256 over the sorted state dict: names, shapes, dtypes and bytes.

    `only` chooses the weights by name.
    """
    sha = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if not only(name):
            continue
        # Equal weights must give one digest on every device and memory layout.
        value = tensor.detach().cpu().contiguous()
        sha.update(f"{name} {tuple(value.shape)} {value.dtype}\n".encode())
        # Not `tobytes`: a large embedding would be in memory twice.
        sha.update(value.reshape(-1).view(torch.uint8).numpy())
    return "sha256:" + sha.hexdigest()


def arithmetic_of(config: Any) -> dict[str, Any]:
    """What a config says about the arithmetic."""
    return {key: getattr(config, key, None) for key in _ARITHMETIC}


def backbone_digest(weights: str, config: Any, tokenizer_json: str, *others: str) -> str:
    """SHA-256 over everything that decides an answer.

    Args:
        weights: digest of the weights that are read.
        config: gives the arithmetic.
        others: more facts, each a line of text.
    """
    lines = [
        f"weights {weights}",
        f"arithmetic {json.dumps(arithmetic_of(config), sort_keys=True, default=str)}",
        f"tokenizer {_tokenizer_digest(tokenizer_json)}",
        *others,
    ]
    return "sha256:" + hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _tokenizer_digest(tokenizer_json: str) -> str:
    """SHA-256 of what turns texts into token ids."""
    content = json.loads(tokenizer_json)
    kept = {key: value for key, value in content.items() if key not in _NOT_TEXT_TO_IDS}
    # Versions of tokenizers add keys with the value null, and order keys in their own way.
    text = json.dumps(_without_null(kept), sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _without_null(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_null(one) for key, one in value.items() if one is not None}
    if isinstance(value, list):
        return [_without_null(one) for one in value]
    return value
