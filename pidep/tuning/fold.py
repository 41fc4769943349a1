"""`pidep fold` as a function: an expert of a smaller rank, within an error bound."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pidep.errors import ExpertError
from pidep.experts.folder import read_expert, write_expert
from pidep.experts.resolve import resolve_expert_folder
from pidep.interpolation.fold import truncate

__all__ = ["FoldedExpert", "fold_expert"]


@dataclass(frozen=True)
class FoldedExpert:
    """The written expert, with its error at each site."""

    out: Path
    digest: str
    rank: int
    errors: dict[str, float]
    """Site to ‖ΔW − ΔW_r‖ / ‖ΔW‖, in [0, 1]."""

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {**asdict(self), "out": str(self.out)}


def fold_expert(folder: Path, out: Path, *, rank: int, max_error: float) -> FoldedExpert:
    """Write `out`: the LoRA of a run folder or expert folder, at `rank`.

    Raises:
        ExpertError: the expert is no LoRA, or an update loses more than `max_error`; nothing was
            written.
    """
    expert = read_expert(resolve_expert_folder(folder))
    if expert.kind != "lora":
        raise ExpertError(
            f"{folder}: is of kind {expert.kind!r}; only a LoRA has a rank to reduce, by SVD"
        )
    found = truncate(expert.sites, scaling=expert.scaling, rank=rank, max_error=max_error)
    facts = {"folded_from": expert.digest, "folded_error": found.worst[1]}
    small = replace(
        expert,
        sites=dict(found.sites),
        scaling=1.0,
        # The metrics were measured with the larger rank.
        metrics={},
        provenance={**expert.provenance, **facts},
    )
    write_expert(small, out)
    return FoldedExpert(out, small.digest, rank, found.errors)
