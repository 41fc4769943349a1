"""`pidep fold` as a function: an expert of a smaller rank, held to an error."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pidep.errors import ExpertError
from pidep.experts.folder import write_expert
from pidep.interpolation.fold import truncate
from pidep.tuning.tune import run_expert

__all__ = ["Shrunk", "shrink"]


@dataclass(frozen=True)
class Shrunk:
    """What was written."""

    out: Path
    digest: str
    rank: int
    errors: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {**asdict(self), "out": str(self.out)}


def shrink(run: Path, out: Path, *, rank: int, max_error: float) -> Shrunk:
    """Write `out`: the run's LoRA at `rank`.

    Raises:
        ExpertError: not a LoRA, or an update loses more than `max_error`; nothing was written.
    """
    expert = run_expert(run)
    if expert.kind != "lora":
        raise ExpertError(f"{run}: is of kind {expert.kind!r}; only a LoRA has a rank to reduce, by SVD")
    found = truncate(expert.sites, scaling=expert.scaling, rank=rank, max_error=max_error)
    provenance = {**expert.provenance, "folded_from": expert.digest, "folded_error": found.worst[1]}
    small = replace(expert, sites=dict(found.sites), scaling=1.0, metrics={}, provenance=provenance)
    write_expert(small, out)
    return Shrunk(out, small.digest, rank, found.errors)
