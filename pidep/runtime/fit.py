"""Whether a bank can hold an expert. A swap asks before it publishes, without ONNX Runtime."""

from __future__ import annotations

from pidep.artifacts.bank import BankRecord
from pidep.experts.bank import BankGroup, check_fits
from pidep.experts.folder import Expert
from pidep.experts.validation import require_within

__all__ = ["check_expert", "groups_of"]


def groups_of(record: BankRecord) -> tuple[BankGroup, ...]:
    """The bank's graph inputs, as expert packing takes them."""
    return tuple(BankGroup(**dict(group)) for group in record.groups)


def check_expert(record: BankRecord, expert: Expert) -> None:
    """Refuse an expert that the bank cannot hold or that cannot answer.

    Raises:
        ExpertError: a value that no answer can use, another backbone, kind or width, an unknown
            site, a rank over the bank's, or texts longer than the backbone reads.
    """
    groups = groups_of(record)
    check_fits(expert, groups, max_rank=record.max_rank, backbones=record.backbones)
    require_within(expert, width=record.hidden_size, max_positions=record.max_positions)
