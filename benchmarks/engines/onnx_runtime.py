"""pidep's graphs, opened as the server opens them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from benchmarks.engines.batch import EXPERTS, Batch, Engine

__all__ = ["bank", "five_apart", "merged"]


def _session(graph: Path) -> Any:
    from pidep.files.digest import file_digest
    from pidep.runtime.session import open_session

    return open_session(graph, file_digest(graph))


def merged(folder: Path, graph: str) -> Engine:
    """A merged graph."""
    session = _session(folder / graph)

    def engine(batch: Batch) -> Any:
        feeds = batch._asdict()
        return lambda: session.run(None, feeds)[0]

    return engine


def bank(folder: Path, graph: str, rows: str = "mixed") -> Engine:
    """A bank's graph with its experts in memory.

    Args:
        rows: `mixed`, an expert of its own in each row; `one`, the same in all; `five`, as `mixed`
            over the experts of all kinds; or the number of parts of a mixture in each row.
    """
    session = _session(folder / graph)
    values = _values(session, folder / f"layout-{graph}.json")

    def engine(batch: Batch) -> Any:
        count = len(batch.input_ids)
        at = np.arange(count)
        if rows == "one":
            slots = np.ones((1, 1), np.int64)
        elif rows.isdigit():
            slots = 1 + (at[:, None] + np.arange(int(rows))) % EXPERTS
        else:
            slots = 1 + (at % EXPERTS)[:, None]
        return _call(session, values, batch, slots)

    return engine


def five_apart(folder: Path, graph: str) -> Engine:
    """The rows of each kind in a batch of their own, one after the other.

    A server without a bank of all kinds runs so. Batches of fewer than five rows are left out.
    """
    session = _session(folder / graph)
    path = folder / f"layout-{graph}.json"
    values, kinds = _values(session, path), len(json.loads(path.read_text()))

    def engine(batch: Batch) -> Any:
        at = np.arange(len(batch.input_ids))
        if len(at) < kinds:
            return lambda: None
        calls = []
        for kind in range(kinds):
            some = at[at % kinds == kind]
            part = Batch(*(one[some] for one in batch))
            calls.append(_call(session, values, part, np.full((1, 1), kind + 1, np.int64)))

        def all_of_them() -> None:
            for call in calls:
                call()

        return all_of_them

    return engine


def _call(session: Any, values: dict[str, Any], batch: Batch, slots: Any) -> Any:
    width = next(one.shape[2] for one in session.get_inputs() if one.name == "weights")
    weights = np.full((*slots.shape, width), 1 / slots.shape[1], np.float32)
    feeds = {
        name: onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(value))
        for name, value in {**batch._asdict(), "slots": slots, "weights": weights}.items()
    }

    def call() -> None:
        session.run_with_ort_values(["sentence_embedding"], {**feeds, **values})

    return call


def _values(session: Any, layout: Path) -> dict[str, Any]:
    """Random experts, resident as in a server: expert k has the kind k modulo the kinds."""
    kinds: list[list[str]] = json.loads(layout.read_text())
    rng = np.random.default_rng(0)
    found = {}
    for one in session.get_inputs():
        owner = next((kind for kind, inputs in enumerate(kinds) if one.name in inputs), None)
        if owner is None:
            continue
        array = np.zeros((EXPERTS + 1, *one.shape[1:]), np.float32)
        for slot in range(1, EXPERTS + 1):
            if (slot - 1) % len(kinds) == owner:
                array[slot] = rng.normal(0, 0.02, one.shape[1:])
        found[one.name] = onnxruntime.OrtValue.ortvalue_from_numpy(array)
    return found
