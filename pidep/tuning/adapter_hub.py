"""Adapters from a model hub: the two files that are needed, and no other."""

from __future__ import annotations

import re
from pathlib import Path

from pidep.errors import ExpertError
from pidep.experts.peft_format import CONFIG, TENSORS

__all__ = ["hub_folder", "is_hub_id"]

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(?:@[\w./-]+)?")


def is_hub_id(text: str) -> bool:
    """Whether a text can be ORG/NAME or ORG/NAME@REVISION."""
    return _HUB_ID.fullmatch(text) is not None and not text.startswith(".")


def hub_folder(hub_id: str) -> Path:
    """The folder of an adapter in the hub's cache; downloads what is not there.

    Raises:
        ExpertError: the hub does not answer, or has no such adapter.
    """
    from huggingface_hub import snapshot_download

    name, _, revision = hub_id.partition("@")
    try:
        # No pickle and no code: only the files that are read.
        found = snapshot_download(
            name, revision=revision or None, allow_patterns=[CONFIG, TENSORS, "*/" + CONFIG]
        )
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ExpertError(
            f"{hub_id}: no such folder, and no adapter of this id on the hub ({reason}); give a "
            "folder or ORG/NAME"
        ) from error
    return Path(found)
