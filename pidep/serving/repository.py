"""The models of a repository, checked before Triton Server is started on it."""

from __future__ import annotations

from pathlib import Path

from pidep.artifacts.merged import MergedRecord
from pidep.artifacts.names import (
    BANK_RECORD,
    CONFIG,
    DECODER_GRAPH,
    ENCODER_GRAPH,
    GRAPH,
    MERGED_RECORD,
    SHIM,
    VERSION,
)
from pidep.errors import UsageError
from pidep.serving.staging import is_plain

__all__ = ["has_stub", "models_in", "require_complete"]


def models_in(repo: Path) -> list[str]:
    """Names of the models in a repository, each complete.

    A version without its files sticks in LOADING inside Triton Server, and stopping the server
    takes half a minute then. So it is refused here.

    Raises:
        UsageError: no repository, no model in it, or one that lacks a file.
    """
    if not repo.is_dir():
        raise UsageError(f"{repo}: no such model repository; make one with pidep export")
    # An export writes its entry into a hidden folder first.
    found = [
        folder
        for folder in sorted(repo.iterdir())
        if not folder.name.startswith(".") and (folder / CONFIG).is_file()
    ]
    for folder in found:
        if not is_plain(folder.name):
            raise UsageError(
                f"{folder}: Triton Server reads names of ASCII letters, digits and . _ - only; "
                "rename the model"
            )
        require_complete(folder)
        model = MergedRecord.graph_model_of(folder)
        if model and not (repo / model / CONFIG).is_file():
            raise UsageError(f"{folder}: asks the model {model}, which is missing; export it again")
    if not found:
        raise UsageError(f"{repo}: no model with a config.pbtxt in it; make one with pidep export")
    return [folder.name for folder in found]


def has_stub(model: Path) -> bool:
    """Whether a model runs in a process of the Python backend."""
    return 'backend: "python"' in (model / CONFIG).read_text()


def require_complete(model: Path) -> None:
    """Refuse a model's folder that Triton Server could not load.

    Raises:
        UsageError: it lacks a file.
    """
    version = model / VERSION
    if not any((version / name).is_file() for name in (BANK_RECORD, MERGED_RECORD)):
        raise UsageError(f"{model}: no bank.json or merged.json in version 1; export it again")
    sequences = (ENCODER_GRAPH, DECODER_GRAPH)
    decodes = any((version / name).is_file() for name in sequences)
    needed = list(sequences) if decodes else [] if MergedRecord.graph_model_of(model) else [GRAPH]
    # Triton Server's own backends read the graph; only the Python backend loads `model.py`.
    if has_stub(model):
        needed.append(SHIM)
    for name in needed:
        if not (version / name).is_file():
            raise UsageError(f"{model}: version 1 lacks {name}; export it again")
