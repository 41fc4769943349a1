"""The first node of an exported graph whose numbers are not PyTorch's.

The gate asks for it when it refuses an expert. Outputs of the backbone's modules become outputs of
a copy of the graph. The copy answers the worst row, through the same code as in serving.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pidep.adapters.mixture import attached, mixture_of
from pidep.artifacts.names import DATA_SUFFIX
from pidep.backbones.backbone import Backbone
from pidep.export.module_values import ModuleValues, plain_name
from pidep.export.recipe import Precision
from pidep.export.source import Source
from pidep.files.digest import file_digest
from pidep.inputs.row import Input
from pidep.runtime.bank import Bank
from pidep.runtime.bank_graph import BankGraph
from pidep.runtime.merged import Merged
from pidep.runtime.session import open_session

__all__ = ["BOUNDS", "Bisection", "torch_outputs"]

_LOG = logging.getLogger(__name__)
Array = npt.NDArray[Any]
BOUNDS = {"fp32": 1e-4, "fp16": 3e-2, "int8": 0.5}
"""How far a module's output may be from PyTorch's, as a share of its largest value."""
_SHOWN = 3


@dataclass(frozen=True)
class _Place:
    """An output of a module, or of the whole graph."""

    at: int
    """Number of the node that gives it."""
    module: str
    value: str
    max_abs: float
    largest: float
    """PyTorch's largest absolute value."""

    @property
    def share(self) -> float:
        """The error as a share of the largest value; NaN counts as Inf."""
        found = self.max_abs / max(self.largest, 1e-6)
        return found if np.isfinite(found) else np.inf


@dataclass(frozen=True)
class Bisection:
    """Looks for the first node beyond tolerance in one opened entry."""

    opened: Bank | Merged
    graph: Path
    modules: Callable[[], ModuleValues]
    """Exports the graph once more, with the names of the modules."""
    backbone: Backbone
    precision: Precision

    def first_beyond(self, source: Source, row: Input, *, ask: Callable[[Input], object]) -> str:
        """What to say about the first node beyond tolerance, as a part of a message.

        Args:
            row: where the answers differ.
            ask: lets the entry answer a row, as the first of a batch without padding.
        """
        if not self.backbone.embeds or self.backbone.towers:
            return ""  # the answer is of runs of two graphs
        _LOG.info("export: looks for the first node beyond tolerance")
        # Whatever goes wrong here must not replace the error that is being explained.
        try:
            return f"; {self._found(source, row, ask)}"
        except Exception as error:
            reason = (str(error).splitlines() or ["?"])[0][:120]
            return f"; no node was named ({type(error).__name__}: {reason})"

    @property
    def _runs(self) -> Merged | BankGraph:
        """What holds the session of the entry's one graph."""
        return self.opened if isinstance(self.opened, Merged) else self.opened.graphs["text"]

    def _found(self, source: Source, row: Input, ask: Callable[[Input], object]) -> str:
        expected = torch_outputs(self.backbone, source, row)
        modules = self.modules()
        with self._tapped(modules) as tap:
            ask(row)
        places = sorted(_compared(modules, expected, tap), key=lambda place: place.at)
        bound = BOUNDS[self.precision]
        for number, place in enumerate(places):
            if place.share > bound:
                nodes = tap.path(place, [one.value for one in places[:number]])
                return _sentence(place, nodes, number, bound, self.precision)
        return _rounding(places, bound)

    @contextmanager
    def _tapped(self, modules: ModuleValues) -> Iterator[_Tap]:
        """The entry with a session that keeps the modules' outputs."""
        # Beside the graph: a hard link to its weights needs the same file system.
        with TemporaryDirectory(dir=self.graph.parent) as folder:
            copy = Path(folder) / self.graph.name
            nodes, values = _with_outputs(self.graph, copy, modules)
            session, before = open_session(copy, file_digest(copy)), self._runs.session
            tap = _Tap(session, nodes, values)
            try:
                self._runs.session = tap
                yield tap
            finally:
                self._runs.session = before


@dataclass
class _Node:
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    has_weights: bool
    """Whether it reads a constant of several numbers."""


@dataclass
class _Tap:
    """A session that keeps values of its graph, of the first row of the last batch."""

    session: Any
    nodes: Sequence[_Node]
    values: Sequence[str]
    seen: dict[str, Array] = field(default_factory=dict)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.session, name)

    def run(self, outputs: Sequence[str], feeds: Mapping[str, Any]) -> list[Any]:
        """As of a session."""
        found = self.session.run([*outputs, *self.values], feeds)
        return self._kept(outputs, found, found)

    def run_with_ort_values(self, outputs: Sequence[str], feeds: Mapping[str, Any]) -> list[Any]:
        """As of a session."""
        found = self.session.run_with_ort_values([*outputs, *self.values], feeds)
        return self._kept(outputs, found, [value.numpy() for value in found])

    def _kept(self, outputs: Sequence[str], found: list[Any], arrays: Sequence[Array]) -> list[Any]:
        self.seen = dict(zip([*outputs, *self.values], arrays, strict=True))
        return found[: len(outputs)]

    def position(self, value: str) -> int:
        """Number of the node that gives a value."""
        return next(at for at, node in enumerate(self.nodes) if value in node.outputs)

    def path(self, place: _Place, agreeing: Sequence[str]) -> list[str]:
        """Names of the nodes between values that agree and one that does not.

        Those with weights, where some have: a graph is seldom wrong in its arithmetic.
        """
        reached = set(agreeing) | (set() if agreeing else {"input_ids", "pixels", "visual"})
        forward = set()
        for node in self.nodes[: place.at + 1]:
            if reached & set(node.inputs):
                forward.add(node.name)
                reached |= set(node.outputs)
        needed, found = {place.value}, list[_Node]()
        for node in reversed(self.nodes[: place.at + 1]):
            if needed & set(node.outputs):
                needed |= set(node.inputs) - set(agreeing)
                found += [node] if node.name in forward else []
        found = [node for node in found if node.has_weights] or found
        return [node.name for node in reversed(found)]


def torch_outputs(backbone: Backbone, source: Source, row: Input) -> dict[str, list[Array]]:
    """PyTorch's outputs of each module for one row, with the expert attached; "" is the answer.

    The answer is the row's embedding, and its logits where the expert has labels.
    """
    found: dict[str, list[Array]] = {}
    expert, hooks = source.expert, []

    def keep(name: str) -> Callable[..., None]:
        def hook(_: Any, __: Any, output: Any) -> None:
            found.setdefault(name, []).extend(_arrays(output))

        return hook

    with attached(backbone.model, mixture_of(source.served)), torch.no_grad():
        try:
            named: dict[str, Any] = {}
            for name, module in backbone.model.named_modules():
                # The outermost of the layers that experts wrap around each other comes first.
                named.setdefault(plain_name(name), module)
            for name, module in named.items():
                hooks.append(module.register_forward_hook(keep(name)))
            embedding = backbone.embed([row], max_length=expert.max_length)
        finally:
            for hook in hooks:
                hook.remove()
    found[""] = [embedding.numpy()]
    if expert.labels:
        labels = torch.from_numpy(expert.label_embeddings)
        found[""].append((expert.logit_scale * embedding @ labels.T).numpy())
    return found


def _arrays(output: Any) -> Iterator[Array]:
    """The tensors in floating point of a module's output."""
    if isinstance(output, torch.Tensor):
        if output.is_floating_point():
            # A copy: a later module may write into the same memory.
            yield output.detach().cpu().float().numpy().copy()
    elif isinstance(output, Mapping):
        yield from _arrays(tuple(output.values()))
    elif isinstance(output, tuple | list):
        for one in output:
            yield from _arrays(one)


def _with_outputs(graph: Path, copy: Path, modules: ModuleValues) -> tuple[list[_Node], list[str]]:
    """Write a copy of a graph that gives the modules' values, too; its nodes, and those values."""
    import onnx

    # Weights beside the graph stay there: the copy gets a link to their file.
    model = onnx.load(graph, load_external_data=False)
    weights = {one.name for one in model.graph.initializer if np.prod(one.dims) > 1}
    nodes = [
        _Node(one.name, tuple(one.input), tuple(one.output), bool(weights & set(one.input)))
        for one in model.graph.node
    ]
    given = {name for node in nodes for name in node.outputs}
    already = {one.name for one in model.graph.output}
    wanted = dict.fromkeys(value for values in modules.values() for value in values)
    values = [name for name in wanted if name in given - already]
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in values)
    onnx.save(model, copy)
    data = graph.with_name(graph.name + DATA_SUFFIX)
    if data.exists():
        beside = copy.with_name(data.name)
        try:
            os.link(data, beside)
        except OSError:  # a file system without hard links
            shutil.copyfile(data, beside)
    return nodes, values


def _compared(
    modules: ModuleValues, expected: Mapping[str, Sequence[Array]], tap: _Tap
) -> Iterator[_Place]:
    """Each module that both sides have, and the graph's output."""
    outputs = [name for name in tap.seen if name not in tap.values]
    for module, values in {**modules, "": outputs}.items():
        found = [
            _Place(tap.position(value), module, value, *_difference(array, own))
            for value in values
            for own in expected.get(module, ())
            if value in tap.seen and (array := _row(tap.seen[value], own)) is not None
        ]
        if found:
            # A module may give several tensors of one shape; the nearest pair belongs together.
            yield min(found, key=lambda place: place.share)


def _row(found: Array, own: Array) -> Array | None:
    """The first row of a batch in the shape of PyTorch's single row `[1, …]`."""
    if found.ndim != own.ndim or found.ndim < 2:
        return None
    row = found[:1]
    if row.ndim == 3 and row.shape[1] > own.shape[1]:
        # A bank has room for the longest prompt; a shorter one, or none, leaves the first places.
        row = row[:, row.shape[1] - own.shape[1] :]
    return row if row.shape == own.shape else None


def _difference(found: Array, own: Array) -> tuple[float, float]:
    return float(np.abs(found.astype(np.float64) - own).max()), float(np.abs(own).max())


def _sentence(
    place: _Place, nodes: Sequence[str], before: int, bound: float, kind: Precision
) -> str:
    shown = ", ".join(map(repr, nodes[:_SHOWN]))
    more = f" and {len(nodes) - _SHOWN} more" if len(nodes) > _SHOWN else ""
    allowed = f"allowed {bound * place.largest:.2g}"
    if kind == "int8":
        allowed += " (int8 is bounded by the metric; a node by half of its largest value)"
    inputs = f"the {before} outputs before it agree" if before else "no output is before it"
    return (
        f"first beyond tolerance: {place.module or 'the output'} (node{'s' * (len(nodes) > 1)} "
        f"{shown}{more}): max abs {place.max_abs:.2g}, {allowed}; {inputs}"
    )


def _rounding(places: Sequence[_Place], bound: float) -> str:
    """What to say where no module is beyond tolerance by itself."""
    if not places:
        return "no node was named: no module's output is in the graph"
    worst = max(places, key=lambda place: place.share)
    return (
        f"no node of {len(places)} is beyond {bound:.0e} of its largest value, the furthest is "
        f"{worst.module or 'the output'} with {worst.share:.1e}: rounding, a fusion of the "
        "runtime, or what feeds the graph"
    )
