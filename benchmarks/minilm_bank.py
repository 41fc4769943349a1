"""MiniLM's bank with a LoRA of rank 8 on every Linear, and experts that fit it."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from pidep.adapters.bank import bank_groups
from pidep.adapters.mixture import find_sites, fresh
from pidep.artifacts import BankRecord, GroupRecord
from pidep.backbones.load import load_backbone
from pidep.experts.folder import Expert
from pidep.export.graph import export_bank_graph
from pidep.export.graph_cache import cached_bank_graph
from pidep.files.digest import file_digest

__all__ = ["RANK", "varied", "write_bank"]

RANK = 8


def write_bank(folder: Path, *, store: str) -> Expert:
    """Write a bank's version folder; gives an expert that fits.

    Args:
        store: the expert store, relative to the folder.
    """
    backbone = load_backbone("minilm")
    sites = find_sites(backbone.model, kind="lora")
    groups = bank_groups(backbone.model, sites, kind="lora", size=RANK)
    graph = folder / "model.onnx"
    cached_bank_graph(
        backbone,
        groups,
        graph,
        lambda: export_bank_graph(backbone, groups, graph, opset=20),
        opset=20,
        half=False,
    )
    (folder / "tokenizer.json").write_text(backbone.tokenizer_json, encoding="utf-8")
    BankRecord(
        backbone_digest=backbone.digest,
        graph_digest=file_digest(graph),
        hidden_size=backbone.hidden_size,
        max_positions=backbone.max_positions,
        max_rank=RANK,
        expert_store=store,
        groups=tuple(GroupRecord(**asdict(group)) for group in groups),
    ).write(folder)
    return Expert(
        name="bench",
        backbone_digest=backbone.digest,
        sites=fresh(backbone.model, sites, kind="lora", rank=RANK),
        scaling=1.0,
        labels=("positive", "negative"),
        label_texts=("positive", "negative"),
        label_embeddings=backbone.label_embeddings(["positive", "negative"]).numpy(),
        logit_scale=20.0,
        max_length=64,
    )


def varied(expert: Expert, number: int) -> Expert:
    """Another expert of the same shapes."""
    rng = np.random.default_rng(number)
    sites = {
        site: {
            name: rng.normal(0, 0.02, array.shape).astype(np.float32)
            for name, array in tensors.items()
        }
        for site, tensors in expert.sites.items()
    }
    return replace(expert, name=f"e{number}", sites=sites)
