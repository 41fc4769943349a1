"""A front: the model that reads texts, before a graph in a backend of Triton Server.

Two models come from one expert. The graph's model runs in NVIDIA's onnxruntime or tensorrt backend
and takes token ids. The front runs in the Python backend: it tokenises, asks the graph's model from
inside the server (Triton's BLS), and answers as every other model of pidep does. The graph's model
has its digest in its name. A front therefore never asks another front's graph, even while a new
pair replaces an old one. Decision 040 says why this is no ensemble.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from google.protobuf import text_format

from pidep.artifacts.gate import GateRecord
from pidep.artifacts.merged import MergedRecord
from pidep.artifacts.names import (
    CONFIG,
    GATE,
    GATE_PAGE,
    GATE_REPORT,
    NO_BYTECODE,
    SHIM,
    TOKENIZER,
    VERSION,
)
from pidep.export.config_pbtxt import merged_config, read_config
from pidep.export.entries import Exported, Platform, StagedEntry, staged_merged
from pidep.export.recipe import Recipe, shipped
from pidep.export.source import Source
from pidep.files.atomic_write import temporary_sibling

__all__ = ["export_front", "staged_front"]


@contextmanager
def staged_front(
    source: Source, repo: Path, recipe: Recipe, *, platform: Platform, keep_rows: bool = False
) -> Iterator[StagedEntry]:
    """An expert's graph for one of Triton Server's own backends, and its front. Not yet published.

    Args:
        platform: `onnxruntime` or `tensorrt`.
        keep_rows: whether the front keeps rows of the gate, for `pidep verify`.

    Raises:
        PidepError: as `staged_merged`.
    """
    staged = staged_merged(
        source, repo, recipe, platform=platform, keep_rows=keep_rows, has_front=True
    )
    with staged as graph:
        record = MergedRecord.read(graph.temporary / VERSION)
        name = graph.exported.model
        assert record.entry_digest is not None, "the record was sealed"
        model = f"{name}-graph-{record.entry_digest.removeprefix('sha256:')[:12]}"
        _behind_a_front(graph.temporary / CONFIG, model)
        behind = replace(graph, exported=replace(graph.exported, model=model, folder=repo / model))
        with temporary_sibling(repo / name) as folder:
            _write_front(folder, name, graph.temporary, record, model, recipe)
            yield StagedEntry(graph.exported, folder, behind)


def export_front(
    source: Source, repo: Path, recipe: Recipe, *, platform: Platform, keep_rows: bool = False
) -> Exported:
    """Export, gate and publish the front and its graph's model; as `staged_front`."""
    with staged_front(source, repo, recipe, platform=platform, keep_rows=keep_rows) as entry:
        with entry.in_place():
            return entry.exported


def _behind_a_front(config: Path, model: str) -> None:
    content = read_config(config)
    content.name = model
    # The front forms the batches. The server's own batcher can let a request wait half a second.
    content.ClearField("dynamic_batching")
    config.write_text(text_format.MessageToString(content), encoding="utf-8")


def _write_front(
    folder: Path, name: str, graph: Path, record: MergedRecord, model: str, recipe: Recipe
) -> None:
    """Fill the front's folder; the gate's report and rows go to it from the graph's."""
    version = folder / VERSION
    version.mkdir()
    shutil.copyfile(graph / VERSION / TOKENIZER, version / TOKENIZER)
    shutil.copyfile(shipped(SHIM), version / SHIM)
    (version / NO_BYTECODE).touch()
    front = record.model_copy(update={"graph_model": model}).sealed(version)
    front.write(version)
    for file in (GATE_REPORT, GATE_PAGE):
        # They name the entry, which is the front here.
        text = (graph / file).read_text(encoding="utf-8")
        text = text.replace(record.entry_digest or "", front.entry_digest or "")
        (folder / file).write_text(text, encoding="utf-8")
        (graph / file).unlink()
    if (graph / GATE).is_file():
        kept = GateRecord.read(graph)
        kept.model_copy(update={"entry": front.entry_digest or ""}).write(folder)
        (graph / GATE).unlink()
    config = merged_config(
        name,
        max_batch_size=recipe.max_batch_size,
        platform="python",
        num_labels=len(record.labels),
    )
    # Last: without it no server takes the folder for a model.
    (folder / CONFIG).write_text(config, encoding="utf-8")
