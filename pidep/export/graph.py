"""The graphs themselves: merged (one expert in the weights) and bank (experts as inputs)."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pidep.adapters.fold import folded_or_attached
from pidep.adapters.kinds import adapter_kind
from pidep.adapters.mixture import attached
from pidep.adapters.site import WrappedSite, bank_rows
from pidep.backbones.backbone import Backbone
from pidep.errors import PidepError
from pidep.experts.bank import BankGroup, pack
from pidep.experts.folder import Expert
from pidep.experts.kinds import expert_kind
from pidep.inputs.row import Input, Row

__all__ = ["bank_groups", "export_bank_graph", "export_merged_graph", "export_vision_graph"]


class _Merged(nn.Module):
    def __init__(self, backbone: Backbone, expert: Expert) -> None:
        super().__init__()
        self.model = backbone.model
        self.encode = backbone.forward
        self.register_buffer("label_embeddings", torch.from_numpy(expert.label_embeddings) * expert.logit_scale)

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        return self.encode(**inputs) @ self.label_embeddings.T  # type: ignore[operator]


class _Bank(nn.Module):
    def __init__(self, backbone: Backbone, groups: Sequence[BankGroup]) -> None:
        super().__init__()
        self.model = backbone.model
        self.encode = backbone.forward
        self.groups = tuple(groups)

    def forward(self, inputs: dict[str, Tensor], expert_index: Tensor, factors: Sequence[Tensor]) -> Tensor:
        by_site: dict[str, dict[str, Tensor]] = {}
        for group, tensor in zip(self.groups, factors, strict=True):
            rows = tensor.index_select(0, expert_index)  # [B, S, R, width]
            for site, factor in zip(group.sites, rows.unbind(1), strict=True):
                by_site.setdefault(site, {})[group.factor] = factor
        with bank_rows(by_site):
            return self.encode(**inputs)


def bank_groups(model: nn.Module, sites: Sequence[str], *, kind: str = "lora") -> list[BankGroup]:
    """The graph inputs that hold experts of a kind at these sites, in a fixed order."""
    shapes = {site: adapter_kind(kind).shapes(model, site, 1) for site in sites}
    return expert_kind(kind).bank_groups(shapes)


def _bank_site(group: BankGroup, site: str) -> WrappedSite:
    make = adapter_kind(group.kind).bank_site
    assert make is not None, group.kind
    return make(site)


def _to_onnx(
    module: nn.Module, arguments: dict[str, Any], path: Path, *, opset: int, shapes: dict[str, Any], names: dict[str, list[str]]
) -> None:
    """`torch.onnx.export`, quiet, into one self-contained file."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            program = torch.onnx.export(
                module.eval(),
                kwargs=arguments,
                dynamo=True,
                opset_version=opset,
                dynamic_shapes=shapes,
                input_names=names["inputs"],
                output_names=names["outputs"],
                verbose=False,
                optimize=True,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            raise PidepError(
                f"export of {type(module).__name__[1:].lower()} graph failed: {(str(error).splitlines() or ['?'])[0]}"
            ) from error
        assert program is not None
        program.save(str(path), external_data=False)


def _example(backbone: Backbone) -> tuple[dict[str, Tensor], dict[str, dict[int, Any]]]:
    """Inputs of a batch, and which axes of theirs are dynamic."""
    texts: list[Input] = ["an example of some length", "short", "and one in between"]
    seen = backbone.image_graph is not None
    rows = [*texts[:2], Row(str(texts[2]), np.zeros((8, 8), np.uint8))] if seen else texts
    inputs = backbone.prepare(rows, max_length=32)
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length", max=backbone.max_positions)
    places = torch.export.Dim("places", max=1024)
    return inputs, {name: {0: batch, 1: places if name.startswith("visual") else length} for name in inputs}


def export_merged_graph(backbone: Backbone, expert: Expert, path: Path, *, opset: int) -> None:
    """Inputs as `backbone.prepare` gives them; output `logits` [B, C] fp32."""
    inputs, axes = _example(backbone)
    names = {"inputs": list(inputs), "outputs": ["logits"]}
    with folded_or_attached(backbone.model, expert.sites, kind=expert.kind, scaling=expert.scaling):
        _to_onnx(_Merged(backbone, expert), {"inputs": inputs}, path, opset=opset, shapes={"inputs": axes}, names=names)


def export_bank_graph(backbone: Backbone, groups: Sequence[BankGroup], path: Path, *, max_rank: int, opset: int) -> None:
    """Inputs as merged, `expert_index` [B] int64 and one [E, S, R, width] fp32 a group; output `sentence_embedding` [B, D], unit rows."""
    inputs, axes = _example(backbone)
    count = torch.export.Dim("experts")
    factors = [torch.from_numpy(pack(group, [None] * 4, max_rank=max_rank)) for group in groups]
    shapes = {"inputs": axes, "expert_index": {0: axes["input_ids"][0]}, "factors": [{0: count} for _ in groups]}
    names = {"inputs": [*inputs, "expert_index", *(group.input for group in groups)], "outputs": ["sentence_embedding"]}
    sites = {site: _bank_site(group, site) for group in groups for site in group.sites}
    with attached(backbone.model, sites):
        arguments = {"inputs": inputs, "expert_index": torch.tensor([1, 2, 3]), "factors": factors}
        _to_onnx(_Bank(backbone, groups), arguments, path, opset=opset, shapes=shapes, names=names)


def export_vision_graph(backbone: Backbone, path: Path, *, opset: int) -> None:
    """Input `pixels` [N, 3, S, S] fp32, normalised; output `visual` [N, V, D] fp32, which goes beside the words."""
    assert backbone.image_graph is not None
    assert backbone.preprocess is not None
    size = backbone.preprocess.size
    shapes = {"pixels": {0: torch.export.Dim("images")}}
    names = {"inputs": ["pixels"], "outputs": ["visual"]}
    _to_onnx(backbone.image_graph, {"pixels": torch.zeros(2, 3, size, size)}, path, opset=opset, shapes=shapes, names=names)
