"""What pidep makes of each field of PEFT's configurations. No torch.

Every field of `LoraConfig`, `PrefixTuningConfig` and `PromptTuningConfig` has a row, in the table
of its kind (`ExpertKind.peft_fields`). A test walks the dataclasses of the installed PEFT, so a
field that a later PEFT adds fails there until it has a row. Until then it is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pidep.errors import ExpertError

__all__ = [
    "COMMON",
    "UNUSED",
    "VIRTUAL_TOKENS",
    "PeftField",
    "honoured",
    "refused",
    "require_harmless",
    "training",
]

UNUSED: tuple[Any, ...] = (None, False, [], {})
"""Values with which a field means nothing."""


@dataclass(frozen=True)
class PeftField:
    """A field of one of PEFT's configurations."""

    treatment: Literal["honoured", "training", "refused"]
    """honoured: it decides the answers, and the expert answers so. training: it changes no answer
    of a trained adapter. refused: the expert cannot answer so, unless the value is harmless."""
    why: str
    """How it is honoured, or why it is refused and what to do; ends a message."""
    harmless: tuple[Any, ...] | None = None
    """The only values that it may have; None: any."""


def honoured(why: str, harmless: tuple[Any, ...] | None = None) -> PeftField:
    """A field that decides the answers."""
    return PeftField("honoured", why, harmless)


def training(why: str) -> PeftField:
    """A field that changes no answer of a trained adapter."""
    return PeftField("training", why)


def refused(why: str, harmless: tuple[Any, ...] = UNUSED) -> PeftField:
    """A field that no expert can honour, unless its value is harmless."""
    return PeftField("refused", why, harmless)


COMMON: Mapping[str, PeftField] = {
    "peft_type": honoured("the kind of the expert"),
    "task_type": training("which class of PEFT wraps the backbone; heads are in modules_to_save"),
    "auto_mapping": training("which class AutoPeftModel loads"),
    "peft_version": training("who wrote the file"),
    "base_model_name_or_path": honoured("a warning where it is not the backbone"),
    "revision": training("of the backbone; shapes and the backbone's digest are checked"),
    "inference_mode": training("whether gradients are kept"),
    "modules_to_save": refused(
        "these are whole layers beside the adapter, such as a head, and an expert scores against "
        "the texts of its labels instead; train it without them, or with task_type="
        "FEATURE_EXTRACTION"
    ),
}
"""Fields that every configuration has."""

VIRTUAL_TOKENS: Mapping[str, PeftField] = {
    **COMMON,
    "num_virtual_tokens": honoured("checked against the tensor"),
    "num_layers": honoured("a prefix has keys and values for each; one of a prompt means nothing"),
    "num_transformer_submodules": honoured(
        "of an encoder-decoder's prompt, the encoder's half; its prefix is refused"
    ),
    "token_dim": honoured("the tensor says it"),
    "num_attention_heads": honoured("the backbone says it"),
}
"""Fields of prefix and prompt tuning."""


def require_harmless(
    where: Path, config: Mapping[str, Any], fields: Mapping[str, PeftField]
) -> None:
    """Refuse a configuration that an expert cannot honour.

    An adapter without DoRA's magnitudes would answer, only wrongly. So would one without a setting
    that a later PEFT invents.

    Raises:
        ExpertError: names the field, its value and the reason.
    """
    for key, value in config.items():
        field = fields.get(key) or refused(
            "this pidep does not know it; train the expert without it"
        )
        if field.harmless is not None and value not in field.harmless:
            raise ExpertError(f"{where}: {key}={value!r} is not supported: {field.why}")
