"""The graphs: merged (one expert in the weights), bank (experts as inputs) and vision."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
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
from pidep.errors import PidepError
from pidep.experts.bank import BankGroup, pack
from pidep.experts.folder import Expert
from pidep.export.attention import attention_translation
from pidep.export.row_ops import translations
from pidep.inputs.row import Input, Row

__all__ = ["MOST_INSIDE", "export_bank_graph", "export_merged_graph", "export_vision_graph"]

MOST_INSIDE = 2**31 - 2**27
"""Bytes of weights in one ONNX file: a protobuf message has at most 2 GiB, and the nodes are in it,
too."""


@dataclass(frozen=True)
class _Signature:
    """What a graph takes and gives."""

    arguments: dict[str, Any]
    """Example arguments of the module's `forward`, by name."""
    dynamic: dict[str, Any]
    """The same structure; axis number to `torch.export.Dim`, for axes of any size."""
    inputs: list[str]
    output: str


def export_merged_graph(
    backbone: Backbone,
    expert: Expert,
    path: Path,
    *,
    opset: int,
    half: bool = False,
    beside: bool = False,
) -> None:
    """Write the graph with one expert in it.

    Inputs as `backbone.prepare` gives them; output `logits` [B, C] fp32.

    Args:
        half: whether the backbone computes in fp16. Pooling and logits stay in fp32.
        beside: whether the weights are in `<path>.data`. Weights of 2 GiB always are.

    Raises:
        PidepError: the exporter cannot translate the backbone.
    """
    inputs, axes = _example(backbone)
    signature = _Signature({"inputs": inputs}, {"inputs": axes}, list(inputs), names.GRAPH_LOGITS)
    if half:
        backbone = _copied(backbone)
    with folded_or_attached(backbone.model, expert.sites, kind=expert.kind, scaling=expert.scaling):
        # Folded in fp32, then cast: the sum of weight and expert is rounded once.
        if half:
            backbone.model.half()
        program = _to_onnx(_Merged(backbone, expert), signature, opset=opset, form="merged")
        _save(program.model, path, beside=beside)


def export_bank_graph(
    backbone: Backbone,
    groups: Sequence[BankGroup],
    path: Path,
    *,
    opset: int,
    half: bool = False,
    beside: bool = False,
) -> None:
    """Write the graph that has experts as inputs.

    Inputs as in a merged graph, `slots` [G, K] int64 and `weights` [G, K, S] fp32 as `BankRows`
    takes them, and one tensor for each group, its first axis the experts'; output
    `sentence_embedding` [B, D] fp32, unit rows.

    Args:
        half: whether the backbone computes in fp16. Then experts are inputs in fp16, too.
        beside: as `export_merged_graph`.

    Raises:
        PidepError: as `export_merged_graph`.
    """
    inputs, axes = _example(backbone)
    # Experts are inputs of the graph: state that hangs on modules is lost in the exporter's copy.
    factors = [torch.from_numpy(pack(group, [None] * 4)) for group in groups]
    if half:
        backbone = _copied(backbone)
        backbone.model.half()
        factors = [factor.half() for factor in factors]
    layout = bank_layout(backbone.model, groups)
    # Three rows in the batch, two in `slots`, five experts a row of four: torch.export fixes sizes
    # 0 and 1 as constants, and may take equal sizes for one axis.
    slots, weights = torch.zeros(2, 5, dtype=torch.int64), torch.ones(2, 5, len(layout.sites))
    some, count, mixed = (torch.export.Dim(name) for name in ("slot_rows", "experts", "mixed"))
    slots_name, weights_name = names.GRAPH_SLOTS, names.GRAPH_WEIGHTS
    signature = _Signature(
        {"inputs": inputs, slots_name: slots, weights_name: weights, "factors": factors},
        {
            "inputs": axes,
            slots_name: {0: some, 1: mixed},
            weights_name: {0: some, 1: mixed},
            "factors": [{0: count} for _ in groups],
        },
        [*inputs, slots_name, weights_name, *(group.input for group in groups)],
        names.GRAPH_EMBEDDING,
    )
    with attached_bank(backbone.model, groups):
        program = _to_onnx(_Bank(backbone, layout), signature, opset=opset, form="bank")
        _save(program.model, path, beside=beside)


def export_vision_graph(backbone: Backbone, path: Path, *, opset: int) -> None:
    """Write the graph of a backbone that reads images, from pixels to visual tokens.

    Input `pixels` [N, 3, S, S] fp32, normalised; output `visual` [N, V, D] fp32.

    Raises:
        PidepError: as `export_merged_graph`.
    """
    assert backbone.image_graph is not None
    assert backbone.preprocess is not None
    size = backbone.preprocess.size
    signature = _Signature(
        # Two images: torch.export fixes an axis of size 1 as a constant.
        {names.GRAPH_PIXELS: torch.zeros(2, 3, size, size)},
        {names.GRAPH_PIXELS: {0: torch.export.Dim("images")}},
        [names.GRAPH_PIXELS],
        names.GRAPH_VISUAL,
    )
    program = _to_onnx(backbone.image_graph, signature, opset=opset, form="vision")
    _save(program.model, path, beside=False)


class _Merged(nn.Module):
    """Backbone and labels to logits; the expert acts inside the backbone."""

    def __init__(self, backbone: Backbone, expert: Expert) -> None:
        super().__init__()
        self.model = backbone.model
        self.encode = backbone.forward
        # The scale is folded into the labels: one multiplication less for each row.
        labels = torch.from_numpy(expert.label_embeddings) * expert.logit_scale
        self.register_buffer("label_embeddings", labels)

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        return self.encode(**inputs) @ self.label_embeddings.T  # type: ignore[operator]


class _Bank(nn.Module):
    """Backbone and experts to embeddings; each row has its own experts' factors."""

    def __init__(self, backbone: Backbone, layout: BankLayout) -> None:
        super().__init__()
        self.model = backbone.model
        self.encode = backbone.forward
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


def _copied(backbone: Backbone) -> Backbone:
    """The backbone with a model of its own, which may be changed for good."""
    return backbone.around(copy.deepcopy(backbone.model))


def _example(backbone: Backbone) -> tuple[dict[str, Tensor], dict[str, dict[int, Any]]]:
    """Inputs of a batch, and which of their axes are dynamic."""
    # Different lengths, so that the example has padding and the mask matters.
    rows: list[Input] = ["an example of some length", "short", "and one in between"]
    if backbone.image_graph is not None:
        # One row with an image, so that the inputs for images are there and not empty.
        rows[2] = Row("and one in between", np.zeros((8, 8), np.uint8))
    inputs = backbone.prepare(rows, max_length=min(32, backbone.max_positions))
    batch = torch.export.Dim("batch")
    # torch.export refuses a length beyond the table of positions.
    length = torch.export.Dim("length", max=backbone.max_positions)
    places = torch.export.Dim("places", max=1024)  # of visual tokens; a batch without images has 0

    def second(name: str) -> Any:
        return places if name.startswith("visual") else length

    return inputs, {name: {0: batch, 1: second(name)} for name in inputs}


def _to_onnx(module: nn.Module, signature: _Signature, *, opset: int, form: str) -> Any:
    """`torch.onnx.export`, quiet; the program, which shares its weights with the module."""
    # The exporter logs and warns about each of its steps, also where all went well.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            return torch.onnx.export(
                module.eval(),
                kwargs=signature.arguments,
                dynamo=True,
                opset_version=opset,
                dynamic_shapes=signature.dynamic,
                input_names=signature.inputs,
                output_names=[signature.output],
                custom_translation_table={**translations(opset), **attention_translation(opset)},
                verbose=False,
                optimize=True,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            first = (str(error).splitlines() or ["?"])[0]
            raise PidepError(f"export of the {form} graph failed: {first}") from error


def _save(model: Any, path: Path, *, beside: bool) -> None:
    """Write a graph: in one file, or with its weights beside it in `<path>.data`.

    Both files have the same bytes each time: the weights lie in the order of the graph.
    """
    import onnx_ir

    _strip_metadata(model)
    weights = [one.const_value for one in model.graph.initializers.values()]
    beside = beside or sum(one.nbytes for one in weights if one is not None) > MOST_INSIDE
    data = path.name + names.DATA_SUFFIX if beside else None
    # One tensor at a time goes to the file, so the weights are not in memory a second time.
    onnx_ir.save(model, path, external_data=data)


def _strip_metadata(model: Any) -> None:
    """Remove what the exporter notes about its own source code.

    Stack traces hold the paths of this checkout. With them, the digest of one and the same graph
    would depend on the folder in which it was exported.
    """
    model.metadata_props.clear()
    for graph in (model.graph, *model.functions.values()):
        graph.metadata_props.clear()
        for node in graph.all_nodes():
            node.metadata_props.clear()
            for value in (*node.inputs, *node.outputs):
                if value is not None:
                    value.metadata_props.clear()
        for value in (*graph.inputs, *graph.outputs):
            value.metadata_props.clear()
    for value in model.graph.initializers.values():
        value.metadata_props.clear()
