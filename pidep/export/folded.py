"""A merged graph holds its expert: the folded weights, or the expert's own tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from pidep.adapters.fold import folded_or_attached
from pidep.adapters.kinds import adapter_kind
from pidep.backbones.backbone import Backbone
from pidep.errors import ParityError
from pidep.experts.folder import Expert

__all__ = ["require_folded"]

Array = npt.NDArray[Any]
_Place = tuple[str, str]
"""A site, and what the graph must hold of it."""


def require_folded(backbone: Backbone, expert: Expert, graph: Path, *, half: bool = False) -> None:
    """Refuse a merged graph without something that its expert brings.

    A kind that is folded changes a weight at each of its sites, and the graph holds that weight. Of
    other kinds, the graph holds the tensors. Weights are read one at a time.

    Args:
        graph: as it was exported, not quantised yet.
        half: whether the backbone computes in fp16.

    Raises:
        ParityError: names the tensor and the site.
    """
    kind = adapter_kind(expert.kind)
    if kind.fold is not None:
        dtype = np.dtype(np.float16 if half else np.float32)
        missing = _not_folded(_folded(backbone, expert, dtype), graph)
    elif kind.as_constants:
        missing = _not_held(_constants(expert), graph)
    else:
        return
    if missing is not None:
        site, tensor = missing
        raise ParityError(
            f"expert {expert.name!r}: {graph.name} holds no {tensor} at {site}, so the expert "
            "would change nothing there; use `form=bank`, and report it with the versions of torch "
            "and onnxscript; nothing was published"
        )


def _folded(backbone: Backbone, expert: Expert, dtype: np.dtype[Any]) -> dict[_Place, set[bytes]]:
    """Digests of the folded weights, as they are and transposed, where the expert acts.

    Raises:
        ParityError: a folded weight is the backbone's.
    """
    # An untrained LoRA has zeros, and changes nothing. The gate asks whether the expert acts.
    acting = [
        site
        for site, tensors in sorted(expert.sites.items())
        if all(array.any() for array in tensors.values())
    ]
    model = backbone.model
    before = {(site, name): _digest(array) for site, name, array in _weights(model, acting)}
    found: dict[_Place, set[bytes]] = {}
    with folded_or_attached(model, expert.sites, kind=expert.kind, scaling=expert.scaling):
        for site, name, array in _weights(model, acting):
            if _digest(array) != before[site, name]:
                held = _rounded(array, dtype)
                found[site, f"folded {name}"] = {_digest(held), _digest(held.T)}
    for site in sorted(set(acting) - {site for site, _ in found}):
        raise ParityError(
            f"expert {expert.name!r}: {', '.join(sorted(expert.sites[site]))} at {site} leave the "
            "backbone's weight as it is, the change is below the rounding of fp32; use `form=bank`"
            "; nothing was published"
        )
    return found


def _not_folded(wanted: Mapping[_Place, set[bytes]], graph: Path) -> _Place | None:
    """The first place whose weight is not in the graph."""
    held = {_digest(array) for array in _constants_of(graph)}
    return next((place for place, digests in wanted.items() if not digests & held), None)


def _constants(expert: Expert) -> dict[_Place, Array]:
    """The expert's tensors; the exporter may leave zeros out."""
    return {
        (site, name): array
        for site, tensors in sorted(expert.sites.items())
        for name, array in tensors.items()
        if array.any()
    }


def _not_held(wanted: dict[_Place, Array], graph: Path) -> _Place | None:
    """The first place whose tensor is not in the graph."""
    for held in _constants_of(graph):
        for place in [place for place, array in wanted.items() if _holds(held, array)]:
            del wanted[place]
    return next(iter(wanted), None)


def _holds(held: Array, array: Array) -> bool:
    """Whether a constant of the graph holds an array: with its axes moved, or within."""
    array = _rounded(array, held.dtype)
    if held.size == array.size:
        # Transposed, or with the heads split off and moved to the front.
        return np.array_equal(np.sort(held, axis=None), np.sort(array, axis=None))
    # Tensors of one expert that share one constant `[1, N]`.
    within = held.ndim == 2 and len(held) == 1 and held.size > array.size
    return within and array.tobytes() in held.tobytes()


def _constants_of(graph: Path) -> Iterator[Array]:
    """The floating-point constants of a graph, one at a time."""
    import onnx_ir

    for one in onnx_ir.load(graph).graph.initializers.values():
        if one.const_value is not None and one.dtype is not None and one.dtype.is_floating_point():
            yield one.const_value.numpy()


def _weights(model: nn.Module, sites: Sequence[str]) -> Iterator[tuple[str, str, Array]]:
    for site in sites:
        for name, parameter in model.get_submodule(site).named_parameters():
            yield site, name, parameter.detach().cpu().numpy()


def _rounded(array: Array, dtype: np.dtype[Any]) -> Array:
    with np.errstate(over="ignore"):  # the gate refuses a graph that gives Inf
        return array.astype(dtype)


def _digest(array: Array) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(array).data).digest()
