"""Which matrix products lose most in int8, measured one at a time on real rows."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from shutil import copyfile
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from pidep.artifacts.names import DATA_SUFFIX, GRAPH_LOGITS, GRAPH_SLOTS, GRAPH_WEIGHTS
from pidep.backbones.backbone import Backbone
from pidep.experts.bank import pack
from pidep.experts.kind import BankGroup, bank_sites
from pidep.export.dynamic_int8 import quantise_products
from pidep.export.graph_cache import code_digest
from pidep.export.recipe import Quantisation
from pidep.files.cache_file import read_cached, write_cached
from pidep.files.cache_folder import cache_folder
from pidep.files.digest import file_digest
from pidep.inputs.row import Input
from pidep.runtime.session import open_session

__all__ = ["Feeds", "calibration_feeds", "own_feeds", "product_errors"]

_LOG = logging.getLogger(__name__)
_BATCH = 16

Feeds = Sequence[Mapping[str, npt.NDArray[Any]]]
"""Inputs of a graph, a batch at a time."""


def calibration_feeds(
    backbone: Backbone, rows: Sequence[Input], groups: Sequence[BankGroup], *, max_length: int
) -> Feeds:
    """A graph's inputs for real rows; through the bare backbone, where it is a bank's."""
    bare: dict[str, npt.NDArray[Any]] = {}
    if groups:
        bare = {group.input: pack(group, [None]) for group in groups}
        bare[GRAPH_SLOTS] = np.zeros((1, 1), np.int64)
        bare[GRAPH_WEIGHTS] = np.zeros((1, 1, len(bank_sites(groups))), np.float32)
    found = []
    for start in range(0, len(rows), _BATCH):
        inputs = backbone.prepare(list(rows[start : start + _BATCH]), max_length=max_length)
        found.append({**{name: tensor.numpy() for name, tensor in inputs.items()}, **bare})
    return found


def own_feeds(graph: Path, feeds: Feeds) -> Feeds:
    """The feeds that a graph can run, with its own inputs: a tower reads texts, or images."""
    import onnx

    wanted = [one.name for one in onnx.load(graph, load_external_data=False).graph.input]
    return [{name: one[name] for name in wanted} for one in feeds if one.keys() >= set(wanted)]


def product_errors(
    graph: Path, products: Sequence[str], how: Quantisation, feeds: Feeds
) -> dict[str, float]:
    """Product to the error of the graph's output when that product alone is in int8.

    The error is relative: the root mean square of the change, over that of the output. The output
    is the logits or the embedding; of an encoder, the keys and values that the decoder reads. The
    figures are kept in the cache folder.
    """
    key = _key(graph, products, how, feeds)
    kept = cache_folder() / "sensitivity" / f"{key}.safetensors"
    found = read_cached(kept, key=key)
    if found is None:
        found = {"errors": np.array(_measured(graph, products, how, feeds))}
        write_cached(kept, found, key=key)
    return dict(zip(products, found["errors"].tolist(), strict=True))


def _measured(graph: Path, products: Sequence[str], how: Quantisation, feeds: Feeds) -> list[float]:
    expected = _outputs(graph, feeds)
    found = []
    for number, product in enumerate(products):
        count = {"done": number, "total": len(products)}
        _LOG.info("export: measures int8, a matrix product at a time", extra=count)
        with TemporaryDirectory(dir=graph.parent) as folder:
            copy = Path(folder) / graph.name
            for suffix in ("", DATA_SUFFIX):
                if (source := graph.with_name(graph.name + suffix)).exists():
                    copyfile(source, copy.with_name(copy.name + suffix))
            quantise_products(copy, [product], how)
            difference = _outputs(copy, feeds) - expected
        found.append(float(np.sqrt(np.mean(difference**2) / np.mean(expected**2))))
    return found


def _outputs(graph: Path, feeds: Feeds) -> npt.NDArray[np.float64]:
    """All numbers of the outputs that count, side by side."""
    session = open_session(graph, file_digest(graph))
    names = [one.name for one in session.get_outputs()]
    # A decoder's keys and values reach the next logits only.
    counted = [GRAPH_LOGITS] if GRAPH_LOGITS in names else names
    found = [array.ravel() for one in feeds for array in session.run(counted, dict(one))]
    outputs: npt.NDArray[np.float64] = np.concatenate(found).astype(np.float64)
    return outputs


def _key(graph: Path, products: Sequence[str], how: Quantisation, feeds: Feeds) -> str:
    """SHA-256 over everything that decides the figures."""
    data = graph.with_name(graph.name + DATA_SUFFIX)
    sha = hashlib.sha256()
    for feed in feeds:
        for name, array in sorted(feed.items()):
            sha.update(f"{name} {array.dtype} {array.shape}\n".encode())
            sha.update(np.ascontiguousarray(array).tobytes())
    facts = {
        "graph": file_digest(graph),
        "data": file_digest(data) if data.exists() else None,
        "products": list(products),
        "quantisation": how.model_dump(mode="json", exclude={"max_product_error"}),
        "feeds": sha.hexdigest(),
        "onnxruntime": onnxruntime.__version__,
        "code": code_digest(),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
