"""A named expert, run or service is replaced by another one only on request. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from pidep.artifacts.names import EXPERT_RECORD, MIXTURE_RECORD
from pidep.errors import ExpertError, UsageError
from pidep.experts.mixed import Served, head_of
from pidep.inputs.template import Template

__all__ = ["Meaning", "check_same_meaning", "found_expert", "refuse_to_replace"]


class Meaning(NamedTuple):
    """What a served name means to its clients: which rows it takes, and what it answers."""

    expert: str
    digest: str
    """Empty for an expert that is not made yet."""
    labels: tuple[str, ...]
    template: Template | None

    @classmethod
    def of(cls, served: Served) -> Meaning:
        """The meaning of an expert or a mixture."""
        head = head_of(served)
        return cls(head.name, served.digest, head.labels, head.template)

    @classmethod
    def recorded(cls, folder: Path) -> Meaning:
        """The meaning of a version by its record alone: its tensors are not read.

        Raises:
            ExpertError: the record is missing or damaged.
        """
        from pidep.artifacts.expert_record import ExpertRecord
        from pidep.artifacts.mixture_record import MixtureRecord

        if (folder / MIXTURE_RECORD).is_file():
            mixture = MixtureRecord.read(folder)
            head, digest = mixture.head_record(folder), mixture.digest
        else:
            head = ExpertRecord.read(folder / EXPERT_RECORD)
            digest = head.digest
        return cls(head.name, digest, head.labels, head.template)

    def __str__(self) -> str:
        """For messages."""
        template = "" if self.template is None else f", template {_shown_template(self.template)}"
        digest = f"{self.digest[:19]}…, " if self.digest else ""
        return f"expert {self.expert!r} ({digest}{_shown(self.labels)}{template})"


def check_same_meaning(name: str, old: Meaning, new: Meaning) -> None:
    """Refuse an expert that would change what a served name means.

    Raises:
        ExpertError: other labels, another order of them, another template or kind of answer; names
            both experts.
    """
    # An expert of an older release has no template; its clients send texts, which go on working.
    other_template = old.template is not None and old.template != new.template
    if old.labels != new.labels or other_template:
        raise ExpertError(
            f"{name!r}: is {old}, and this is {new}; clients of {name!r} would get other answers: "
            "choose another name, or give `allow_new_labels`"
        )


def found_expert(folder: Path) -> str:
    """The expert of a folder, for messages; empty where there is none."""
    from pidep.artifacts.expert_record import ExpertRecord

    path = folder / EXPERT_RECORD
    if not path.is_file():
        return ""
    try:
        record = ExpertRecord.read(path)
    except ExpertError:
        return "a damaged expert"
    return str(Meaning(record.name, record.digest, record.labels, record.template))


def refuse_to_replace(folder: Path, by: str, *, do: str = "choose another `out`") -> None:
    """Refuse to write over an expert folder.

    Args:
        by: what would replace the expert.
        do: what to do, other than to overwrite it.

    Raises:
        UsageError: the folder holds an expert; names both.
    """
    held = found_expert(folder)
    if held:
        raise UsageError(
            f"{folder}: holds {held}, and {by} would replace it; {do}, or give `overwrite`"
        )


def _shown(labels: tuple[str, ...]) -> str:
    if not labels:
        return "without labels"
    more = f" and {len(labels) - 10} more" if len(labels) > 10 else ""
    return f"labels {', '.join(labels[:10])}{more}"


def _shown_template(template: Template) -> str:
    parts = [repr(template.text)]
    parts += [f"image {template.image!r}"] * (template.image is not None)
    parts += [f"candidates {template.candidates!r}"] * (template.candidates is not None)
    return " with ".join(parts)
