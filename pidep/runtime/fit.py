"""Whether a bank can hold an expert. A swap asks before it publishes, without ONNX Runtime."""

from __future__ import annotations

from dataclasses import replace

from pidep.artifacts.bank import BankRecord
from pidep.errors import ExpertError
from pidep.experts.bank import BankGroup, check_fits
from pidep.experts.folder import Expert
from pidep.experts.mixed import MixedExpert, Served, parts_of
from pidep.experts.validation import require_valid, require_within

__all__ = ["check_expert", "check_served", "groups_of"]


def groups_of(record: BankRecord) -> tuple[BankGroup, ...]:
    """The bank's graph inputs, as expert packing takes them."""
    # Banks before the one of all kinds held LoRAs only, and had one size for all groups.
    return tuple(
        BankGroup(**{**dict(group), "size": group.size or record.max_rank})
        for group in record.groups
    )


def check_served(record: BankRecord, served: Served, *, is_valid: bool = False) -> None:
    """As `check_expert`, for each part of a mixture and for what it answers with.

    Args:
        is_valid: of an expert, and of each part of a mixture, as for `check_expert`.

    Raises:
        ExpertError: the bank's gate has refused this very version, or as `check_expert`.
    """
    for name, one in (record.left_out or {}).items():
        if one.digest == served.digest and not one.earlier:
            raise ExpertError(one.refusal(name))
    parts = parts_of(served)
    _require_mixable(record, len(parts))
    for part in parts:
        check_expert(record, part, is_valid=is_valid)
    if isinstance(served, MixedExpert):
        head = replace(served.head, sites=served.parts[0].sites)
        check_expert(record, head)


def _require_mixable(record: BankRecord, parts: int) -> None:
    """Refuse a mixture of more parts than the bank's engine was compiled for."""
    if record.engine is not None and parts > (most := record.engine.profile["mixed"][-1]):
        raise ExpertError(
            f"a mixture of {parts} parts: the bank's engine takes {most}; fold it with pidep fold, "
            "or export with more `mixed` in the recipe's profile"
        )


def check_expert(record: BankRecord, expert: Expert, *, is_valid: bool = False) -> None:
    """Refuse an expert that the bank cannot hold or that cannot answer.

    Args:
        is_valid: whether it is known that the expert can answer: reading one from a file checks it.

    Raises:
        ExpertError: a value that no answer can use, another backbone, kind or width, an unknown
            site, a size over the bank's, or texts longer than the backbone reads.
    """
    if not is_valid:
        require_valid(expert)
    check_fits(expert, groups_of(record), backbones=record.backbones)
    require_within(expert, width=record.hidden_size, max_positions=record.max_positions)
