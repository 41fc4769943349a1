"""The graphs: merged (one expert in the weights), bank (experts as inputs) and vision."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pidep.adapters.bank import attached_bank, bank_layout
from pidep.adapters.bank_rows import BankLayout, BankRows, bank_rows
from pidep.adapters.fold import folded_or_attached
from pidep.artifacts import names
from pidep.backbones.backbone import Backbone
from pidep.backbones.tower import Tower, TowerName
from pidep.experts.bank import BankGroup, pack
from pidep.experts.folder import Expert
from pidep.export.module_values import ModuleValues, module_values
from pidep.export.program import Signature, save_graph, to_onnx
from pidep.inputs.row import Input, Row

__all__ = [
    "bank_modules",
    "copied",
    "example",
    "export_bank_graph",
    "export_merged_graph",
    "export_vision_graph",
    "merged_modules",
]


def export_merged_graph(
    backbone: Backbone,
    expert: Expert,
    path: Path,
    *,
    opset: int,
    half: bool = False,
    beside: bool = False,
    tower: TowerName | None = None,
) -> None:
    """Write the graph with one expert in it.

    Inputs as `backbone.prepare` gives them; output `logits` [B, C] fp32.

    Args:
        half: whether the backbone computes in fp16. Pooling and logits stay in fp32.
        beside: whether the weights are in `<path>.data`. Weights of 2 GiB always are.
        tower: of a backbone of two. Its graph has the output `sentence_embedding` [N, D] fp32,
            unit rows: the logits are those of both towers together.

    Raises:
        PidepError: the exporter cannot translate the backbone.
    """
    with _merged_graph(backbone, expert, opset=opset, half=half, tower=tower) as model:
        save_graph(model, path, beside=beside)


def merged_modules(
    backbone: Backbone, expert: Expert, *, opset: int, half: bool = False
) -> ModuleValues:
    """The values of `export_merged_graph` that are outputs of the backbone's modules."""
    with _merged_graph(backbone, expert, opset=opset, half=half) as model:
        return module_values(model)


@contextmanager
def _merged_graph(
    backbone: Backbone,
    expert: Expert,
    *,
    opset: int,
    half: bool,
    tower: TowerName | None = None,
) -> Iterator[Any]:
    """The graph of `export_merged_graph`; inside, it shares its weights with the backbone."""
    inputs, axes = example(backbone, tower)
    output = names.GRAPH_LOGITS if tower is None else names.GRAPH_EMBEDDING
    signature = Signature({"inputs": inputs}, {"inputs": axes}, list(inputs), [output])
    if half:
        backbone = copied(backbone)
    with folded_or_attached(backbone.model, expert.sites, kind=expert.kind, scaling=expert.scaling):
        # Folded in fp32, then cast: the sum of weight and expert is rounded once.
        if half:
            backbone.model.half()
        whole = _Merged(backbone, expert) if tower is None else _Bare(backbone, tower)
        yield to_onnx(whole, signature, opset=opset, form="merged").model


def export_bank_graph(
    backbone: Backbone,
    groups: Sequence[BankGroup],
    path: Path,
    *,
    opset: int,
    half: bool = False,
    beside: bool = False,
    tower: TowerName | None = None,
) -> None:
    """Write the graph that has experts as inputs.

    Inputs as in a merged graph, `slots` [G, K] int64 and `weights` [G, K, S] fp32 as `BankRows`
    takes them, and one tensor for each group, its first axis the experts'; output
    `sentence_embedding` [B, D] fp32, unit rows.

    Args:
        half: whether the backbone computes in fp16. Then experts are inputs in fp16, too.
        beside: as `export_merged_graph`.
        tower: of a backbone of two; the groups are those of its own sites. Without groups, the
            graph has no `slots` and `weights`.

    Raises:
        PidepError: as `export_merged_graph`.
    """
    with _bank_graph(backbone, groups, opset=opset, half=half, tower=tower) as model:
        save_graph(model, path, beside=beside)


def bank_modules(
    backbone: Backbone, groups: Sequence[BankGroup], *, opset: int, half: bool = False
) -> ModuleValues:
    """The values of `export_bank_graph` that are outputs of the backbone's modules."""
    with _bank_graph(backbone, groups, opset=opset, half=half) as model:
        return module_values(model)


@contextmanager
def _bank_graph(
    backbone: Backbone,
    groups: Sequence[BankGroup],
    *,
    opset: int,
    half: bool,
    tower: TowerName | None = None,
) -> Iterator[Any]:
    """The graph of `export_bank_graph`; inside, it shares its weights with the backbone."""
    inputs, axes = example(backbone, tower)
    # Experts are inputs of the graph: state that hangs on modules is lost in the exporter's copy.
    factors = [torch.from_numpy(pack(group, [None] * 4)) for group in groups]
    if half:
        backbone = copied(backbone)
        backbone.model.half()
        factors = [factor.half() for factor in factors]
    if not groups:
        output = [names.GRAPH_EMBEDDING]
        signature = Signature({"inputs": inputs}, {"inputs": axes}, list(inputs), output)
        yield to_onnx(_Bare(backbone, tower), signature, opset=opset, form="bank").model
        return
    layout = bank_layout(backbone.model, groups)
    # Three rows in the batch, two in `slots`, five experts a row of four: torch.export fixes sizes
    # 0 and 1 as constants, and may take equal sizes for one axis.
    slots, weights = torch.zeros(2, 5, dtype=torch.int64), torch.ones(2, 5, len(layout.sites))
    some, count, mixed = (torch.export.Dim(name) for name in ("slot_rows", "experts", "mixed"))
    slots_name, weights_name = names.GRAPH_SLOTS, names.GRAPH_WEIGHTS
    signature = Signature(
        {"inputs": inputs, slots_name: slots, weights_name: weights, "factors": factors},
        {
            "inputs": axes,
            slots_name: {0: some, 1: mixed},
            weights_name: {0: some, 1: mixed},
            "factors": [{0: count} for _ in groups],
        },
        [*inputs, slots_name, weights_name, *(group.input for group in groups)],
        [names.GRAPH_EMBEDDING],
    )
    with attached_bank(backbone.model, groups):
        yield to_onnx(_Bank(backbone, layout, tower), signature, opset=opset, form="bank").model


def export_vision_graph(backbone: Backbone, path: Path, *, opset: int) -> None:
    """Write the graph of a backbone that reads images, from pixels to visual tokens.

    Input `pixels` [N, 3, S, S] fp32, normalised; output `visual` [N, V, D] fp32.

    Raises:
        PidepError: as `export_merged_graph`.
    """
    assert backbone.image_graph is not None
    assert backbone.preprocess is not None
    size = backbone.preprocess.size
    signature = Signature(
        # Two images: torch.export fixes an axis of size 1 as a constant.
        {names.GRAPH_PIXELS: torch.zeros(2, 3, size, size)},
        {names.GRAPH_PIXELS: {0: torch.export.Dim("images")}},
        [names.GRAPH_PIXELS],
        [names.GRAPH_VISUAL],
    )
    program = to_onnx(backbone.image_graph, signature, opset=opset, form="vision")
    save_graph(program.model, path, beside=False)


class _Merged(nn.Module):
    """Backbone, labels and their bias to logits; the expert acts inside the backbone."""

    def __init__(self, backbone: Backbone, expert: Expert) -> None:
        super().__init__()
        self.model = backbone.model
        self.encode = backbone.forward
        # The scale is folded into the labels: one multiplication less for each row.
        labels = torch.from_numpy(expert.label_embeddings) * expert.logit_scale
        self.register_buffer("label_embeddings", labels)
        # None for an expert without: its graph stays as older releases made it.
        bias = torch.tensor(expert.label_bias, dtype=torch.float32) if expert.label_bias else None
        self.label_bias: Tensor | None
        self.register_buffer("label_bias", bias)

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        logits: Tensor = self.encode(**inputs) @ self.label_embeddings.T  # type: ignore[operator]
        return logits if self.label_bias is None else logits + self.label_bias


class _Bare(nn.Module):
    """The backbone as it is, or one of its towers, to embeddings."""

    def __init__(self, backbone: Backbone, tower: TowerName | None) -> None:
        super().__init__()
        self.model = backbone.model
        self.encode = _encode(backbone, tower)

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        return self.encode(**inputs)


class _Bank(nn.Module):
    """Backbone and experts to embeddings; each row has its own experts' factors."""

    def __init__(self, backbone: Backbone, layout: BankLayout, tower: TowerName | None) -> None:
        super().__init__()
        self.model = backbone.model
        self.encode = _encode(backbone, tower)
        self.layout = layout

    def forward(
        self,
        inputs: dict[str, Tensor],
        slots: Tensor,
        weights: Tensor,
        factors: Sequence[Tensor],
    ) -> Tensor:
        like = next(iter(inputs.values()))
        with bank_rows(BankRows(self.layout, factors, slots, weights, like=like)):
            return self.encode(**inputs)


def _tower(backbone: Backbone, name: TowerName | None) -> Tower | None:
    return next((one for one in backbone.towers if one.name == name), None)


def _encode(backbone: Backbone, name: TowerName | None) -> Callable[..., Tensor]:
    """What a graph computes: the tower of this name, or the whole backbone."""
    tower = _tower(backbone, name)
    return backbone.forward if tower is None else tower.forward


def copied(backbone: Backbone) -> Backbone:
    """The backbone with a model of its own, which may be changed for good."""
    return backbone.around(copy.deepcopy(backbone.model))


def example(
    backbone: Backbone, name: TowerName | None = None
) -> tuple[dict[str, Tensor], dict[str, dict[int, Any]]]:
    """Inputs of a batch, and which of their axes are dynamic.

    Args:
        name: of a tower, where a graph holds this one alone.
    """
    tower = _tower(backbone, name)
    # Different lengths, so that the example has padding and the mask matters.
    rows: list[Input] = ["an example of some length", "short", "and one in between"]
    if tower is not None and tower.name == "image":
        rows = [Row(image=np.full((8, 8), grey, np.uint8)) for grey in (0, 100, 200)]
    if backbone.image_graph is not None:
        # One row with an image, so that the inputs for images are there and not empty.
        rows[2] = Row("and one in between", np.zeros((8, 8), np.uint8))
    inputs = backbone.prepare(rows, max_length=min(32, backbone.max_positions))
    batch = torch.export.Dim("batch")
    # torch.export refuses a length beyond the table of positions.
    length = torch.export.Dim("length", max=backbone.max_positions)
    places = torch.export.Dim("places", max=1024)  # of visual tokens; a batch without images has 0

    def axes(name: str) -> dict[int, Any]:
        if name == names.GRAPH_PIXELS or (tower is not None and tower.padded_length):
            return {0: batch}  # images of one size, or texts of one length
        return {0: batch, 1: places if name.startswith("visual") else length}

    if tower is not None:
        inputs = {name: inputs[name] for name in tower.inputs}
    return inputs, {name: axes(name) for name in inputs}
