"""The graph that takes one LoRA as optional inputs, for ONNX Runtime's own adapters.

Its factors are inputs with initializers as defaults. The defaults have rank 0, so the graph alone
is the bare backbone. An `.onnx_adapter` file gives the inputs their values for one run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pidep.adapters.bank import attached_bank, bank_groups
from pidep.adapters.bank_rows import bank_rows
from pidep.adapters.one_expert import OneExpert
from pidep.artifacts import names
from pidep.backbones.backbone import Backbone
from pidep.experts.folder import Expert
from pidep.experts.kind import Array
from pidep.experts.kinds import expert_kind
from pidep.export.graph import example
from pidep.export.program import Signature, save_graph, to_onnx

__all__ = ["adapter_tensors", "export_adapter_graph"]


def adapter_tensors(expert: Expert) -> dict[str, Array]:
    """What an expert gives to an adapter graph, by the names of its optional inputs.

    `<site>.lora_A.weight` [in, r], `<site>.lora_B.weight` [r, out] with the scaling, and
    `label_embeddings` [C, D] times the logit scale.

    Raises:
        ExpertError: the expert's kind cannot be given so.
    """
    kind = expert_kind(expert.kind)
    return {
        f"{site}.{name}": array
        for site, tensors in sorted(expert.sites.items())
        for name, array in kind.graph_inputs(tensors, scaling=expert.scaling).items()
    } | {names.GRAPH_LABELS: expert.label_embeddings * np.float32(expert.logit_scale)}


def export_adapter_graph(
    backbone: Backbone, experts: Sequence[Expert], path: Path, *, opset: int
) -> None:
    """Write the graph that takes any one of these experts.

    Inputs as `backbone.prepare` gives them, and the optional inputs of `adapter_tensors` at the
    sites of all experts; outputs `logits` [B, C] and `sentence_embedding` [B, D], fp32.

    Raises:
        PidepError: the exporter cannot translate the backbone.
        ExpertError: the kind of an expert cannot be given so.
    """
    inputs, axes = example(backbone)
    # Of another rank than any width of the backbone: torch.export may take equal sizes for one.
    given = {
        name: torch.zeros(array.shape) for one in experts for name, array in _largest(one).items()
    }
    open_axis = {"lora_A.weight": 1, "lora_B.weight": 0}
    # A name for each site's own rank: ONNX Runtime reuses memory between tensors whose axes have
    # one name, and an expert that lacks a site has rank 0 there and only there.
    sites = [
        name.removesuffix(".lora_A.weight") for name in given if name.endswith("lora_A.weight")
    ]
    ranks = {site: torch.export.Dim(f"rank_{number}") for number, site in enumerate(sites)}
    factors = [name for name in given if name != names.GRAPH_LABELS]
    dynamic = []
    for name in factors:
        site, _, factor = name.rpartition(".lora_")
        dynamic.append({open_axis[f"lora_{factor}"]: ranks[site]})
    labels = given[names.GRAPH_LABELS]
    signature = Signature(
        {"inputs": inputs, "factors": [given[name] for name in factors], "labels": labels},
        {"inputs": axes, "factors": dynamic, "labels": {0: torch.export.Dim("labels")}},
        [*inputs, *factors, names.GRAPH_LABELS],
        [names.GRAPH_LOGITS, names.GRAPH_EMBEDDING],
    )
    groups = bank_groups(backbone.model, sites, kind=experts[0].kind, size=1)
    with attached_bank(backbone.model, groups):
        program = to_onnx(_Adapted(backbone, factors), signature, opset=opset, form="adapter")
    _make_optional(program.model, given)
    save_graph(program.model, path, beside=False)


def _largest(expert: Expert) -> dict[str, Array]:
    """The tensors of an expert as examples: of rank 3, and of 5 labels."""
    made = {}
    for name, array in adapter_tensors(expert).items():
        shape = list(array.shape)
        shape[1 if name.endswith("lora_A.weight") else 0] = 5 if name == names.GRAPH_LABELS else 3
        made[name] = np.zeros(shape, np.float32)
    return made


class _Adapted(nn.Module):
    """Backbone, one expert's factors and its labels to logits and embeddings."""

    def __init__(self, backbone: Backbone, factors: Sequence[str]) -> None:
        super().__init__()
        self.model = backbone.model
        self.encode = backbone.forward
        self.names = tuple(factors)

    def forward(
        self, inputs: dict[str, Tensor], factors: Sequence[Tensor], labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        named = dict(zip(self.names, factors, strict=True))
        a, b = (
            {name.removesuffix(end): tensor for name, tensor in named.items() if name.endswith(end)}
            for end in (".lora_A.weight", ".lora_B.weight")
        )
        with bank_rows(OneExpert(a, b)):
            embeddings = self.encode(**inputs)
        return embeddings @ labels.T, embeddings


def _make_optional(model: Any, given: Mapping[str, Tensor]) -> None:
    """Give the inputs of an expert defaults: rank 0, and no labels."""
    import onnx_ir

    graph = model.graph
    for value in graph.inputs:
        if value.name in given:
            shape = [size if isinstance(size, int) else 0 for size in value.shape]
            value.const_value = onnx_ir.tensor(np.zeros(shape, np.float32), name=value.name)
            graph.initializers[value.name] = value
