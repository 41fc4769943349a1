"""Any expert as a folder of PEFT, or the reason why there is none. No torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from pidep.errors import ExpertError
from pidep.experts.kinds import expert_kind
from pidep.experts.peft_format import CONFIG, TENSORS, peft_config, peft_types
from pidep.files.tensor_file import tensor_bytes

if TYPE_CHECKING:  # which writes experts by this module
    from pidep.experts.folder import Expert

__all__ = ["require_peft_format", "write_peft"]


def require_peft_format(expert: Expert) -> None:
    """Refuse an expert that PEFT cannot run.

    Raises:
        ExpertError: names the kind and the reason.
    """
    if expert.in_peft_format:
        return
    name, types = f"expert {expert.name!r}", peft_types()
    if expert.kind not in types:
        raise ExpertError(
            f"{name}: is of kind {expert.kind!r}, which PEFT does not have (it has "
            f"{', '.join(sorted(types))}); train the task with another kind"
        )
    why = (
        "is a mixture on outputs, with a bias that PEFT does not have"
        if any("bias" in tensors for tensors in expert.sites.values())
        else "acts at places of its backbone where PEFT does not, or PEFT does not run this kind "
        "on this backbone"
    )
    raise ExpertError(f"{name}: {why}; train the task with `kind=lora`")


def write_peft(expert: Expert, folder: Path, *, base: str | None = None) -> None:
    """Write the two files of PEFT into an existing folder.

    Args:
        base: what PEFT loads the backbone by; the backbone's own name when absent.
    """
    config = peft_config(
        expert.kind,
        expert.sites,
        backbone=base or expert.backbone,
        scaling=expert.scaling,
        rank_stabilized=expert.rank_stabilized,
    )
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    tensors = expert_kind(expert.kind).peft_tensors(expert.sites)
    # As transformers writes it: its older releases refuse a file without this entry.
    (folder / TENSORS).write_bytes(tensor_bytes(tensors, metadata={"format": "pt"}))
