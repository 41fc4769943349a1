"""`pidep import` as a function: a LoRA, prompt or prefix of PEFT becomes an expert."""

from __future__ import annotations

from pidep.adapters.mixture import Mixture, find_sites
from pidep.backbones.load import load_backbone
from pidep.experts.folder import Expert, check_expert_place, check_name, write_expert
from pidep.experts.peft_format import at_sites, read_peft
from pidep.experts.replacing import Meaning, refuse_to_replace
from pidep.tasks.hub import with_labels
from pidep.tasks.task import load_task
from pidep.training.scorer import label_embeddings
from pidep.tuning.settings import ImportSettings

__all__ = ["import_peft"]


def import_peft(settings: ImportSettings) -> Expert:
    """Write the expert folder `out` from a folder that PEFT wrote.

    Raises:
        UsageError: `out` holds an expert, and `overwrite` is not set.
        ExpertError: the adapter uses features that pidep lacks, or does not fit the backbone;
            nothing was written.
    """
    # Before the backbone is loaded, which takes seconds.
    check_expert_place(settings.out)
    found = with_labels(load_task(settings.task))
    name = check_name(settings.name or found.name)
    if not settings.overwrite:
        new = Meaning(name, "", tuple(found.labels), found.template)
        refuse_to_replace(settings.out, f"{new} from {settings.folder}")
    adapter = read_peft(settings.folder)
    encoder = load_backbone(settings.backbone)
    # A LoRA names its sites; PEFT's prompts and prefixes belong to all places of the model.
    places = [] if adapter.sites else find_sites(encoder.model, kind=adapter.kind)
    expert = Expert(
        name=name,
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
        logit_scale=encoder.logit_scale,
        max_length=min(found.max_length, encoder.max_positions),
        template=found.template,
        provenance={"imported_from": "peft"},
    )
    # Checked against the model itself: PEFT's files name a base, and say nothing about its shapes.
    Mixture.of([expert]).check(encoder.model)
    write_expert(expert, settings.out)
    return expert
