"""Bank graphs that were exported before. Tracing one takes most of the time of an export.

A graph depends on the backbone, the layout of the bank, the recipe and the code that makes it. It
does not depend on the experts, which are its inputs.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

import pidep
from pidep.artifacts.names import DATA_SUFFIX
from pidep.backbones.backbone import Backbone
from pidep.backbones.tower import TowerName
from pidep.experts.kind import BankGroup
from pidep.files.cache_file import read_cached, write_cached
from pidep.files.cache_folder import cache_folder

__all__ = ["MOST_BYTES", "cached_bank_graph", "code_digest"]

_LOG = logging.getLogger(__name__)
MOST_BYTES = 2 * 2**30
"""Bytes of all cached graphs; those that were used longest ago go first."""
_ROOMS = ("adapters", "backbones", "experts", "export", "inputs", "kernels")
"""Where the code is that decides a graph."""
_PACKAGES = ("torch", "transformers", "onnx", "onnxscript")


def cached_bank_graph(
    backbone: Backbone,
    groups: Sequence[BankGroup],
    path: Path,
    make: Callable[[], None],
    *,
    opset: int,
    half: bool,
    beside: bool = False,
    tower: TowerName | None = None,
) -> None:
    """Write a bank's graph to `path`: from the cache, or by `make`, which writes it there.

    A cached file that is damaged is made again.
    """
    how = {"name": path.name, "opset": opset, "half": half, "beside": beside, "tower": tower}
    key = _key(backbone, groups, how)
    data = path.with_name(path.name + DATA_SUFFIX)
    kept = cache_folder() / "graphs" / f"{key}.safetensors"
    found = read_cached(kept, key=key)
    if found is not None:
        path.write_bytes(found["graph"].tobytes())
        if "data" in found:
            found["data"].tofile(data)
        with suppress(OSError):
            kept.touch()  # it was used just now
        _LOG.info("export: the graph was exported before")
        return
    make()
    files = {"graph": path, "data": data} if data.exists() else {"graph": path}
    # Asked before they are read: the weights of a large graph are in memory once already.
    if sum(file.stat().st_size for file in files.values()) <= MOST_BYTES:
        read = {name: np.fromfile(file, np.uint8) for name, file in files.items()}
        write_cached(kept, read, key=key)
        _forget(kept.parent)


def _key(backbone: Backbone, groups: Sequence[BankGroup], how: Mapping[str, Any]) -> str:
    """SHA-256 over everything that decides a graph."""
    facts = {
        "backbone": backbone.digest,
        "class": type(backbone.model).__name__,
        "positions": backbone.max_positions,
        "groups": [asdict(group) for group in groups],
        **how,
        "versions": {name: version(name) for name in _PACKAGES},
        "code": code_digest(),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


@cache
def code_digest() -> str:
    """SHA-256 over pidep's own code: a release's number does not change with each change."""
    sha = hashlib.sha256()
    root = Path(pidep.__file__).parent
    for room in _ROOMS:
        for file in sorted((root / room).rglob("*.py")):
            sha.update(f"{file.relative_to(root).as_posix()}\n".encode())
            sha.update(file.read_bytes())
    return sha.hexdigest()


def _forget(folder: Path) -> None:
    """Remove the graphs that were used longest ago, until the others are few enough."""
    # Another export may remove files at the same time.
    with suppress(OSError):
        sizes = {file: file.stat() for file in folder.glob("*.safetensors")}
        total = sum(one.st_size for one in sizes.values())
        for file in sorted(sizes, key=lambda one: sizes[one].st_mtime):
            if total <= MOST_BYTES:
                return
            file.unlink(missing_ok=True)
            total -= sizes[file].st_size
