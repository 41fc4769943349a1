"""Where the expert of a folder lies. No torch."""

from __future__ import annotations

from pathlib import Path

from pidep.artifacts.names import EXPERT_RECORD

__all__ = ["holds_expert", "resolve_expert_folder"]


def holds_expert(folder: Path) -> bool:
    """Whether the folder is a run folder or an expert folder."""
    return (resolve_expert_folder(folder) / EXPERT_RECORD).is_file()


def resolve_expert_folder(folder: Path) -> Path:
    """The expert folder of a run folder; any other folder is returned unchanged.

    A run folder keeps its result in `expert/`; see `pidep.tuning.run_folder`.
    """
    inside = folder / "expert"
    return inside if (inside / EXPERT_RECORD).is_file() else folder
