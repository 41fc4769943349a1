"""The graphs themselves: merged (one expert in the weights) and bank (experts as inputs)."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pidep.backbones.encoder import Encoder
from pidep.errors import PidepError
from pidep.experts.bank import Group, pack
from pidep.experts.folder import Expert
from pidep.experts.kinds.lora import BankSite, bank_rows
from pidep.experts.mixture import Mixture, attached, linear_at
from pidep.interpolation.fold import folded_into

__all__ = ["bank_groups", "export_bank_graph", "export_merged_graph"]


class _Merged(nn.Module):
    def __init__(self, backbone: Encoder, expert: Expert) -> None:
        super().__init__()
        self.model = backbone.model
        self.encoder = backbone.forward
        self.register_buffer("label_embeddings", torch.from_numpy(expert.label_embeddings) * expert.logit_scale)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.encoder(input_ids, attention_mask) @ self.label_embeddings.T  # type: ignore[operator]


class _Bank(nn.Module):
    def __init__(self, backbone: Encoder, groups: Sequence[Group]) -> None:
        super().__init__()
        self.model = backbone.model
        self.encoder = backbone.forward
        self.groups = tuple(groups)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, expert_index: Tensor, factors: Sequence[Tensor]) -> Tensor:
        by_site: dict[str, dict[str, Tensor]] = {}
        for group, tensor in zip(self.groups, factors, strict=True):
            rows = tensor.index_select(0, expert_index)  # [B, S, R, width]
            for site, factor in zip(group.sites, rows.unbind(1), strict=True):
                by_site.setdefault(site, {})[group.factor] = factor
        with bank_rows({site: (pair["A"], pair["B"]) for site, pair in by_site.items()}):
            return self.encoder(input_ids, attention_mask)


def bank_groups(model: nn.Module, sites: Sequence[str]) -> list[Group]:
    """Sites grouped by the width of their factors, in a fixed order."""
    widths: dict[tuple[str, int], list[str]] = {}
    for site in sites:
        linear = linear_at(model, site)
        widths.setdefault(("A", linear.in_features), []).append(site)
        widths.setdefault(("B", linear.out_features), []).append(site)
    return [Group(f"lora_{factor.lower()}_{width}", factor, width, tuple(names)) for (factor, width), names in sorted(widths.items())]


def _to_onnx(
    module: nn.Module, arguments: tuple[Any, ...], path: Path, *, opset: int, shapes: dict[str, Any], names: dict[str, list[str]]
) -> None:
    """`torch.onnx.export`, quiet, into one self-contained file."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            program = torch.onnx.export(
                module.eval(),
                arguments,
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


def _example(backbone: Encoder, rows: int) -> tuple[Tensor, Tensor]:
    ids, mask = backbone.tokenize(["an example of some length", "short", "and one in between"][:rows], max_length=32)
    return torch.from_numpy(ids), torch.from_numpy(mask)


def export_merged_graph(backbone: Encoder, expert: Expert, path: Path, *, opset: int) -> None:
    """Inputs `input_ids`, `attention_mask` [B, T] int64; output `logits` [B, C] fp32."""
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length", max=backbone.max_positions)
    shapes = {"input_ids": {0: batch, 1: length}, "attention_mask": {0: batch, 1: length}}
    names = {"inputs": ["input_ids", "attention_mask"], "outputs": ["logits"]}
    acting = folded_into(backbone.model, expert.sites, scaling=expert.scaling) if expert.kind == "lora" else None
    with acting or attached(backbone.model, Mixture.of([expert])):
        _to_onnx(_Merged(backbone, expert), _example(backbone, 3), path, opset=opset, shapes=shapes, names=names)


def export_bank_graph(backbone: Encoder, groups: Sequence[Group], path: Path, *, max_rank: int, opset: int) -> None:
    """Inputs as merged, `expert_index` [B] int64 and one [E, S, R, width] fp32 a group; output `sentence_embedding` [B, D], unit rows."""
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length", max=backbone.max_positions)
    count = torch.export.Dim("experts")
    factors = [torch.from_numpy(pack(group, [None] * 4, max_rank=max_rank)) for group in groups]
    shapes = {
        "input_ids": {0: batch, 1: length},
        "attention_mask": {0: batch, 1: length},
        "expert_index": {0: batch},
        "factors": [{0: count} for _ in groups],
    }
    names = {
        "inputs": ["input_ids", "attention_mask", "expert_index", *(group.input for group in groups)],
        "outputs": ["sentence_embedding"],
    }
    sites = {site: BankSite(site) for group in groups for site in group.sites}
    with attached(backbone.model, sites):
        arguments = (*_example(backbone, 3), torch.tensor([1, 2, 3]), factors)
        _to_onnx(_Bank(backbone, groups), arguments, path, opset=opset, shapes=shapes, names=names)
