"""`pidep import` as a function: a LoRA, prompt or prefix of PEFT becomes an expert."""

from __future__ import annotations

from pathlib import Path

from pidep.adapters.mixture import Mixture, find_sites
from pidep.backbones.load import load_backbone
from pidep.experts.folder import Expert, check_expert_place, check_name, write_expert
from pidep.experts.peft_format import at_sites, read_peft
from pidep.tasks.hub import with_labels
from pidep.tasks.task import load_task
from pidep.tuning.tune import LOGIT_SCALE, label_embeddings

__all__ = ["adopt"]


def adopt(folder: Path, *, task: str, out: Path, name: str | None = None, backbone: str = "minilm") -> Expert:
    """Write `out` from PEFT's folder.

    Raises:
        ExpertError: nothing pidep can honour, or it does not fit the backbone; nothing was written.
    """
    check_expert_place(out)
    found = with_labels(load_task(task))
    adapter = read_peft(folder)
    encoder = load_backbone(backbone)
    places = [] if adapter.sites else find_sites(encoder.model, kind=adapter.kind)
    expert = Expert(
        name=check_name(name or found.name),
        backbone=encoder.name,
        backbone_digest=encoder.digest,
        sites=at_sites(adapter, places),
        scaling=adapter.scaling,
        kind=adapter.kind,
        peft=True,
        rank_stabilized=adapter.rank_stabilized,
        labels=tuple(found.labels),
        label_texts=tuple(found.labels.values()),
        label_embeddings=label_embeddings(encoder, found).numpy(),
        logit_scale=LOGIT_SCALE,
        max_length=min(found.max_length, encoder.max_positions),
        provenance={"imported_from": "peft"},
    )
    Mixture.of([expert]).check(encoder.model)
    write_expert(expert, out)
    return expert
