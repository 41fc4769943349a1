"""Many experts stacked into the inputs of one graph; numpy only, shared by export and serving."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pidep.errors import ExpertError
from pidep.experts.folder import Expert, require_embeddings

__all__ = ["Group", "check_fits", "fill_row", "pack", "require_lora"]

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Group:
    """Sites whose factor has one width, stacked into one graph input `[E, S, R, width]`.

    One gather for all of them: many small gathers are what costs a small batch.
    """

    input: str
    factor: str
    """`A`, or `B` (transposed, scaling folded in)."""
    width: int
    sites: tuple[str, ...]


def fill_row(row: Array, group: Group, expert: Expert) -> None:
    """Write an expert into one zeroed row `[S, R, width]`."""
    for column, site in enumerate(group.sites):
        if site in expert.sites:
            lora = expert.sites[site]
            factor = lora["lora_A"] if group.factor == "A" else lora["lora_B"].T * np.float32(expert.scaling)
            row[column, : factor.shape[0]] = factor


def pack(group: Group, experts: Sequence[Expert | None], *, max_rank: int) -> Array:
    """`[E, S, R, width]` for a list of experts; `None` (the bare backbone) and absent sites are zero."""
    packed = np.zeros((len(experts), len(group.sites), max_rank, group.width), dtype=np.float32)
    for row, expert in enumerate(experts):
        if expert is not None:
            fill_row(packed[row], group, expert)
    return packed


def require_lora(expert: Expert) -> None:
    """Refuse other kinds.

    Raises:
        ExpertError: the expert is not a LoRA, or is an encoder-decoder's.
    """
    require_embeddings(expert)
    if expert.kind != "lora":
        raise ExpertError(f"expert {expert.name!r}: is of kind {expert.kind!r}, this bank holds LoRA; export it with --form merged")


def check_fits(expert: Expert, groups: Sequence[Group], *, max_rank: int, fitting: Collection[str]) -> None:
    """Refuse an expert that a bank cannot hold.

    Raises:
        ExpertError: other backbone, not a LoRA, unknown site, rank over the bank's, or a wrong width.
    """
    if expert.backbone_digest not in fitting:
        raise ExpertError(
            f"expert {expert.name!r}: made for another backbone ({expert.backbone!r}, {expert.backbone_digest[:19]}…), "
            f"the bank serves {' and '.join(digest[:19] + '…' for digest in fitting)}; tune it on the served backbone"
        )
    require_lora(expert)
    widths = {(group.factor, site): group.width for group in groups for site in group.sites}
    for site, lora in expert.sites.items():
        if ("A", site) not in widths:
            raise ExpertError(f"expert {expert.name!r}: site {site!r} is not in the bank; export the bank with an expert that uses it")
        for factor, found, width in (("A", lora["lora_A"].shape, widths["A", site]), ("B", lora["lora_B"].T.shape, widths["B", site])):
            if found[0] > max_rank or found[1] != width:
                raise ExpertError(
                    f"expert {expert.name!r}: lora_{factor} at {site} has rank {found[0]} and width {found[1]}, "
                    f"the bank needs rank <= {max_rank} and width {width}; export the bank with a larger --max-rank or retrain the expert"
                )
