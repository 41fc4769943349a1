"""Many experts stacked into the inputs of one graph. Export and serving share this; numpy only."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from pidep.errors import ExpertError
from pidep.experts.folder import Expert
from pidep.experts.kind import Array, BankGroup
from pidep.experts.kind_names import kind_names
from pidep.experts.kinds import expert_kind

__all__ = [
    "BankGroup",
    "check_fits",
    "fill_row",
    "pack",
    "positions_before",
    "require_bank_kind",
]


def fill_row(row: Array, group: BankGroup, expert: Expert) -> None:
    """Write an expert into one zeroed row of a group's input, `[S, size, width]`.

    An expert of another kind leaves the row as it is.
    """
    if group.kind == expert.kind:
        expert_kind(group.kind).fill_bank_row(row, group, expert.sites, scaling=expert.scaling)


def pack(group: BankGroup, experts: Sequence[Expert | None]) -> Array:
    """A group's input for a list of experts, `[E, S, size, width]` fp32.

    None (the bare backbone) and sites that an expert does not have are zeros.
    """
    shape = (len(experts), len(group.sites), group.size, group.width)
    # Zeros, not empty: a smaller rank leaves the rest of its row untouched, and zeros change
    # nothing.
    packed = np.zeros(shape, dtype=np.float32)
    for row, expert in enumerate(experts):
        if expert is not None:
            fill_row(packed[row], group, expert)
    return packed


def positions_before(expert: Expert, groups: Sequence[BankGroup]) -> int:
    """Positions that an expert takes before the text: its virtual tokens, for some kinds."""
    return expert_kind(expert.kind).positions_before(expert.sites, groups)


def require_bank_kind(expert: Expert) -> None:
    """Refuse an expert of a kind that no bank holds.

    Raises:
        ExpertError: no bank holds its kind.
    """
    if not expert_kind(expert.kind).in_bank:
        held = " and ".join(name for name in kind_names() if expert_kind(name).in_bank)
        raise ExpertError(
            f"expert {expert.name!r}: is of kind {expert.kind!r}, a bank holds {held}; "
            "export it with `form=merged`"
        )


def check_fits(expert: Expert, groups: Sequence[BankGroup], *, backbones: Collection[str]) -> None:
    """Refuse an expert that a bank cannot hold.

    Args:
        backbones: digests of the backbones whose experts run on the bank's.

    Raises:
        ExpertError: another backbone, another kind, an unknown site, a size over the bank's, or a
            wrong width.
    """
    # By digest, not by name: a name says nothing about the weights.
    if expert.backbone_digest not in backbones:
        raise ExpertError(
            f"expert {expert.name!r}: made for another backbone ({expert.backbone!r}, "
            f"{expert.backbone_digest[:19]}…), the bank serves "
            f"{' and '.join(digest[:19] + '…' for digest in backbones)}; "
            "tune it on the served backbone"
        )
    require_bank_kind(expert)
    kind = expert_kind(expert.kind)
    where = f"expert {expert.name!r}"
    kind.check_bank(expert.sites, groups, where=where)
