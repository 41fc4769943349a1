"""A bank of a tiny backbone as `pidep export` writes it, without the parity gate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from pidep.adapters.bank import bank_groups
from pidep.adapters.mixture import find_sites
from pidep.artifacts import BankRecord, GroupRecord
from pidep.backbones.backbone import Backbone
from pidep.export import load_recipe
from pidep.export.graph import export_bank_graph
from pidep.export.vision import export_vision
from pidep.files.digest import file_digest

MAX_RANK = 4


def export_bank_folder(backbone: Backbone, root: Path, *, kinds: Sequence[str] = ("lora",)) -> Path:
    """The version folder `<root>/pidep_bank/1`, with room at every site of the kinds."""
    folder = root / "pidep_bank" / "1"
    folder.mkdir(parents=True)
    groups = [
        group
        for kind in kinds
        for group in bank_groups(
            backbone.model, find_sites(backbone.model, kind=kind), kind=kind, size=MAX_RANK
        )
    ]
    export_bank_graph(backbone, groups, folder / "model.onnx", opset=20)
    (folder / "tokenizer.json").write_text(backbone.tokenizer_json)
    BankRecord(
        backbone_digest=backbone.digest,
        graph_digest=file_digest(folder / "model.onnx"),
        max_positions=backbone.max_positions,
        max_rank=MAX_RANK,
        expert_store="../../../expert_store",
        groups=tuple(GroupRecord(**asdict(group)) for group in groups),
        vision=export_vision(backbone, folder, load_recipe("onnx-cpu")),
    ).write(folder)
    return folder
