"""Where the expert of a folder lies. No torch."""

from __future__ import annotations

from pathlib import Path

from pidep.artifacts.names import EXPERT_RECORD, MIXTURE_RECORD

__all__ = ["holds_expert", "resolve_expert_folder", "resolve_served_folder"]


def holds_expert(folder: Path) -> bool:
    """Whether the folder is a run folder or an expert folder."""
    return (resolve_expert_folder(folder) / EXPERT_RECORD).is_file()


def resolve_expert_folder(folder: Path) -> Path:
    """The expert folder of a run folder; any other folder is returned unchanged.

    A run folder keeps its result in `expert/`; see `pidep.tuning.run_folder`.
    """
    inside = folder / "expert"
    return inside if (inside / EXPERT_RECORD).is_file() else folder


def resolve_served_folder(folder: Path) -> Path:
    """The folder of what a run would serve: its mixture by reference, else its expert.

    A run folder keeps a mixture in `mixture/` where the folded expert is larger than its parts.
    """
    inside = folder / "mixture"
    return inside if (inside / MIXTURE_RECORD).is_file() else resolve_expert_folder(folder)
