"""`pidep import` as a function: an adapter of PEFT or Olive becomes an expert."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from pidep.adapters.mixture import Mixture, find_sites
from pidep.backbones.backbone import Backbone
from pidep.backbones.load import load_backbone
from pidep.experts.folder import Expert, check_expert_place, check_name, write_expert
from pidep.experts.kind import PeftAdapter
from pidep.experts.olive_format import olive_adapter, read_olive_tensors
from pidep.experts.peft_format import at_sites
from pidep.experts.peft_import import read_foreign_peft
from pidep.experts.replacing import Meaning, refuse_to_replace
from pidep.runtime.adapter_file import SUFFIX, read_adapter_file
from pidep.tasks.hub import with_labels
from pidep.tasks.task import load_task
from pidep.training.scorer import label_embeddings
from pidep.tuning.adapter_hub import hub_folder, is_hub_id
from pidep.tuning.settings import ImportSettings

__all__ = ["import_peft"]

_LOG = logging.getLogger(__name__)
_SAME = {"minilm": "all-MiniLM-L6-v2", "pidep-mini": "all-MiniLM-L6-v2"}
"""Packaged backbones, with the end of their names on the hub."""


def import_peft(settings: ImportSettings) -> Expert:
    """Write the expert folder `out` from what PEFT or Olive wrote.

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
    adapter, base = _read(settings.folder)
    encoder = load_backbone(settings.backbone)
    adapter = _named_for(adapter, encoder.model)
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
        provenance={"imported_from": "olive" if settings.folder.is_file() else "peft"}
        | ({"base": base} if base else {}),
    )
    # Checked against the model itself: PEFT's files name a base, and say nothing about its shapes.
    Mixture.of([expert]).check(encoder.model)
    write_expert(expert, settings.out)
    if base and not _is_same(base, encoder):
        # Shapes cannot tell two bases of one size apart, and names differ for equal weights.
        _LOG.warning(
            "%s: the adapter was trained on %r, and the backbone is %r; its answers are wrong if "
            "these are different weights",
            settings.folder,
            base,
            encoder.name,
        )
    return expert


def _read(place: Path) -> tuple[PeftAdapter, str]:
    """The adapter of a folder, a file or a hub id, and the name of its base."""
    if place.is_file():
        # Of ONNX Runtime's own format, or of one that numpy reads.
        own = place.suffix == SUFFIX
        tensors = read_adapter_file(place) if own else read_olive_tensors(place)
        return olive_adapter(place, tensors), ""
    if not place.exists() and is_hub_id(str(place)):
        place = hub_folder(str(place))
    return read_foreign_peft(place)


def _named_for(adapter: PeftAdapter, model: Any) -> PeftAdapter:
    """The adapter with its sites as the backbone names them.

    A model with a task's head holds the backbone as `bert` or the like.
    """
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    modules = {name for name, _ in model.named_modules()}
    if prefix == "." or any(site in modules for site in adapter.sites):
        return adapter
    return replace(adapter, sites=tuple(site.removeprefix(prefix) for site in adapter.sites))


def _is_same(base: str, backbone: Backbone) -> bool:
    """Whether a base's name is the backbone's: the same folder, hub id, or packaged model."""
    if base == backbone.name or os.path.abspath(base) == backbone.name:
        return True
    return base.rpartition("/")[2] == _SAME.get(backbone.name)
