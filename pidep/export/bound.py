"""No silent base: every tensor that an expert brings is bound to the graph.

An expert whose tensors reach nothing gives no error anywhere: it answers as the bare backbone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from pidep.adapters.kinds import adapter_kind
from pidep.adapters.places import place_of
from pidep.artifacts.names import GRAPH_SLOTS, GRAPH_WEIGHTS
from pidep.backbones.backbone import Backbone
from pidep.errors import ExpertError, ParityError, did_you_mean
from pidep.experts.bank import BankGroup
from pidep.experts.folder import Expert
from pidep.experts.kind import bank_sites
from pidep.experts.kinds import expert_kind

__all__ = ["require_inputs", "require_packed", "require_sites"]

_VIEWS = ("Cast", "Identity", "Reshape")
"""What a bank's graph does to an input of experts before it gathers the rows of a site."""
_REPORT = "report it with the versions of torch and onnxscript; nothing was published"


def require_sites(backbone: Backbone, expert: Expert) -> None:
    """Refuse an expert with a site that the backbone does not have.

    Raises:
        ExpertError: names the site and its tensors.
    """
    kind = adapter_kind(expert.kind)
    there = kind.candidates(backbone.model)
    for site in sorted(expert.sites.keys() - set(there)):
        raise ExpertError(
            f"expert {expert.name!r}: {_listed(expert.sites[site])} at {site!r} would be bound to "
            f"nothing, the backbone has no {place_of(kind)} of that name"
            f"{did_you_mean(site, there)}; rename the site, or train the expert on this backbone"
        )


def require_inputs(graph: Path, groups: Sequence[BankGroup]) -> None:
    """Refuse a bank's graph that leaves an input unread, or what a site has in an input.

    The weights of the graph are not read.

    Raises:
        ParityError: names the input, the factor and the site.
    """
    import onnx

    model = onnx.load(graph, load_external_data=False)
    nodes = _reaching(model.graph)
    read = {name for node in nodes for name in _reads(node)}
    of = {group.input: group for group in groups}
    for one in model.graph.input:
        if one.name not in read:
            group = of.get(one.name)
            what = "" if group is None else f", {group.factor} of {group.kind} at {group.sites[0]}"
            raise ParityError(
                f"{graph.name}: input {one.name!r}{what}, reaches no output; {_REPORT}"
            )
    gathers = _gathers(nodes, {*of, GRAPH_WEIGHTS})
    found = _computed(model, nodes, [index for some in gathers.values() for index in some], graph)
    for name, group in of.items():
        if group.factor in adapter_kind(group.kind).bank_first:
            group = replace(group, sites=group.sites[:1])
        _require_all(graph, group, name, gathers.get(name), found, step=group.size)
    weights = BankGroup(GRAPH_WEIGHTS, "share", 1, bank_sites(groups), 1, "every expert")
    _require_all(graph, weights, GRAPH_WEIGHTS, gathers.get(GRAPH_WEIGHTS), found, step=1)


def _require_all(
    graph: Path,
    group: BankGroup,
    name: str,
    indices: Sequence[str] | None,
    found: Mapping[str, npt.NDArray[Any]],
    *,
    step: int,
) -> None:
    """Refuse an input of which a site's part is gathered nowhere."""
    if indices is None:
        return  # read as a whole
    places = {int(place) // step for index in indices for place in found[index].ravel()}
    for number, site in enumerate(group.sites):
        if number not in places:
            raise ParityError(
                f"{graph.name}: input {name!r}, {group.factor} of {group.kind} at {site}, is read "
                f"by no node that reaches an output; {_REPORT}"
            )


def _reads(node: Any) -> Iterator[str]:
    """Names of the values that a node reads, also inside its branches and loops."""
    yield from node.input
    for attribute in node.attribute:
        for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
            for one in inner.node:
                yield from _reads(one)


def _reaching(graph: Any, wanted: Iterable[str] = ()) -> list[Any]:
    """The nodes that reach these values, the graph's outputs when none is given, in its order."""
    needed = set(wanted) or {one.name for one in graph.output}
    found = []
    for node in reversed(graph.node):  # an ONNX graph is in topological order
        if needed & set(node.output):
            found.append(node)
            needed |= set(_reads(node))
    return found[::-1]


def _gathers(nodes: Sequence[Any], inputs: set[str]) -> dict[str, list[str]]:
    """Input to the indices of what is gathered from it; without inputs that are read otherwise."""
    same = {name: name for name in inputs}
    found: dict[str, list[str]] = {name: [] for name in inputs}
    for node in nodes:
        for at, name in enumerate(node.input):
            source = same.get(name)
            if source is None:
                continue
            if node.op_type in _VIEWS and at == 0:
                same[node.output[0]] = source
            elif node.op_type == "Gather" and at == 0:
                if source in found:
                    found[source].append(node.input[1])
            elif node.op_type != "Shape":
                found.pop(source, None)
    return found


def _computed(
    model: Any, nodes: Sequence[Any], values: Sequence[str], graph: Path
) -> dict[str, npt.NDArray[Any]]:
    """Integers that the graph computes from slot 0: the places in one expert's rows."""
    import onnx

    wanted = list(dict.fromkeys(values))
    some = _reaching(model.graph, wanted)
    read = {name for node in some for name in _reads(node)} | set(wanted)
    constants = [one for one in model.graph.initializer if one.name in read]
    for one in constants:
        if onnx.external_data_helper.uses_external_data(one):
            onnx.external_data_helper.load_external_data_for_tensor(one, str(graph.parent))
            one.data_location = onnx.TensorProto.DEFAULT
            del one.external_data[:]
    inputs = [one for one in model.graph.input if one.name in read]
    outputs = [onnx.helper.make_empty_tensor_value_info(name) for name in wanted]
    part = onnx.helper.make_graph(some, "places", inputs, outputs, constants)
    small = onnx.helper.make_model(
        part, opset_imports=model.opset_import, ir_version=model.ir_version
    )
    session = onnxruntime.InferenceSession(
        small.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    assert {one.name for one in inputs} <= {GRAPH_SLOTS}, "only slots decide what is gathered"
    feeds = {one.name: np.zeros((1, 1), np.int64) for one in inputs}
    return dict(zip(wanted, session.run(wanted, feeds), strict=True))


def require_packed(
    expert: Expert,
    groups: Sequence[BankGroup],
    rows: Mapping[str, npt.NDArray[Any]],
) -> None:
    """Refuse an expert of which a tensor is not in the bank's inputs.

    Args:
        rows: graph input to the expert's row of it, `[S, size, width]`.

    Raises:
        ParityError: names the tensor, the site and the input.
    """
    of = {
        (group.factor, site): (group.input, column)
        for group in groups
        if group.kind == expert.kind
        for column, site in enumerate(group.sites)
    }
    for site, tensors in expert.sites.items():
        factors = expert_kind(expert.kind).bank_factors(tensors, scaling=expert.scaling)
        for factor, array in factors.items():
            place, column = of.get((factor, site), ("", 0))
            if place and _holds(rows[place][column], array):
                continue
            where = f"is not in the bank's input {place!r}" if place else "has no input of the bank"
            raise ParityError(
                f"expert {expert.name!r}: {factor} at {site}, made of {_listed(tensors)}, {where}, "
                "so it would change nothing; report it with the kind's package; nothing was "
                "published"
            )


def _holds(row: npt.NDArray[Any], factor: npt.NDArray[Any]) -> bool:
    """Whether a site's rows `[size, width]` hold a factor's, somewhere, in the bank's precision."""
    with np.errstate(over="ignore"):  # the gate reports what fp16 does not hold
        packed = factor.astype(row.dtype)
    starts = range(len(row) - len(packed) + 1)
    # A short prompt lies at the end, every other factor at the start.
    return any(np.array_equal(row[at : at + len(packed)], packed) for at in starts)


def _listed(tensors: Mapping[str, Any]) -> str:
    return ", ".join(sorted(tensors))
