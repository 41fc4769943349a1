"""A bank of a tiny backbone as `pidep export` writes it, without experts and without the parity gate."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pidep.adapters.mixture import find_sites
from pidep.backbones.backbone import Backbone
from pidep.export.entries import _sha256
from pidep.export.graph import bank_groups, export_bank_graph

MAX_RANK = 4


def export_bank_folder(backbone: Backbone, root: Path, **more: Any) -> Path:
    """`<root>/pidep_bank/1`; `more` goes to its record."""
    folder = root / "pidep_bank" / "1"
    folder.mkdir(parents=True)
    groups = bank_groups(backbone.model, find_sites(backbone.model))
    export_bank_graph(backbone, groups, folder / "model.onnx", max_rank=MAX_RANK, opset=20)
    (folder / "tokenizer.json").write_text(backbone.tokenizer_json)
    record = {
        "backbone_digest": backbone.digest,
        "graph_digest": _sha256(folder / "model.onnx"),
        "max_rank": MAX_RANK,
        "expert_store": "../../../expert_store",
        "groups": [asdict(group) for group in groups],
        **more,
    }
    (folder / "bank.json").write_text(json.dumps(record))
    return folder
