"""`pidep fold` as a function: an expert of a smaller rank, within an error bound."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pidep.errors import ExpertError
from pidep.experts.folder import read_expert, write_expert
from pidep.experts.kinds import expert_kind
from pidep.experts.replacing import Meaning, refuse_to_replace
from pidep.experts.resolve import resolve_expert_folder
from pidep.tuning.settings import FoldSettings

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


def fold_expert(settings: FoldSettings) -> FoldedExpert:
    """Write `out`: the LoRA of `run`, at `rank`.

    Raises:
        UsageError: `out` holds an expert, and `overwrite` is not set.
        ExpertError: the expert is no LoRA, or an update loses more than `max_error`; nothing was
            written.
    """
    expert = read_expert(resolve_expert_folder(settings.run))
    if not settings.overwrite:
        refuse_to_replace(settings.out, f"a smaller {Meaning.of(expert)}")
    kind = expert_kind(expert.kind)
    try:
        found = kind.truncate(
            expert.sites,
            scaling=expert.scaling,
            rank=settings.rank,
            max_error=settings.max_error,
        )
    except ExpertError as error:
        raise ExpertError(f"{settings.run}: {error}") from error
    facts = {"folded_from": expert.digest, "folded_error": found.worst[1]}
    small = replace(
        expert,
        sites=dict(found.sites),
        scaling=1.0,
        # The metrics were measured with the larger rank.
        metrics={},
        provenance={**expert.provenance, **facts},
    )
    write_expert(small, settings.out)
    return FoldedExpert(settings.out, small.digest, settings.rank, found.errors)
