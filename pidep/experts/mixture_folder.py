"""A mixture on disk: a record, the label embeddings, and the folders of its parts.

    mixture.json          α of each part at each site, see `pidep.artifacts.mixture_record`
    labels.safetensors    as in an expert folder
    parts/<64 hex digits>/   (not in a store) an expert folder for each part

In a store, parts are versions beside the mixture, which other mixtures may name as well.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from pidep.artifacts.names import MIXTURE_RECORD
from pidep.errors import ExpertError
from pidep.experts.folder import (
    Expert,
    check_name,
    expert_of,
    read_expert,
    read_label_embeddings,
    record_of,
    write_expert,
    write_label_embeddings,
)
from pidep.experts.mixed import MixedExpert, Served
from pidep.files.atomic_write import atomic_folder, check_place

__all__ = [
    "holds_mixture",
    "part_digests",
    "read_mixture",
    "read_served",
    "write_mixture",
    "write_mixture_record",
]

_PARTS = "parts"


def holds_mixture(folder: Path) -> bool:
    """Whether the folder is a mixture's."""
    return (folder / MIXTURE_RECORD).is_file()


def part_digests(folder: Path) -> tuple[str, ...]:
    """The digests of a mixture's parts, each once; none for an expert folder.

    Raises:
        ExpertError: the mixture's record is damaged.
    """
    from pidep.artifacts.mixture_record import MixtureRecord

    return tuple(dict.fromkeys(MixtureRecord.read(folder).parts)) if holds_mixture(folder) else ()


def read_served(folder: Path) -> Served:
    """The expert or the mixture of a folder; raises as `read_expert` and `read_mixture`."""
    return read_mixture(folder) if holds_mixture(folder) else read_expert(folder)


def read_mixture(folder: Path, *, part: Callable[[str], Expert] | None = None) -> MixedExpert:
    """Read and verify a mixture folder with its parts.

    Args:
        part: gives the part of a digest; it is read from the folder's own parts when absent.

    Raises:
        ExpertError: a file is missing or damaged, the parts do not fit together, or the recorded
            digest does not match the content.
    """
    from pidep.artifacts.mixture_record import MixtureRecord

    record = MixtureRecord.read(folder)
    head = record.head_record(folder)
    read = part or (lambda digest: _own_part(folder, digest))
    # Each once: α may name one expert twice.
    parts = {digest: read(digest) for digest in dict.fromkeys(record.parts)}
    found = MixedExpert(
        expert_of(
            head,
            {},
            scaling=1.0 if head.scaling is None else head.scaling,
            label_embeddings=read_label_embeddings(folder, head),
        ),
        tuple(parts[digest] for digest in record.parts),
        record.alphas,
    )
    if found.digest != record.digest:
        raise ExpertError(
            f"{folder}: digest mismatch, {MIXTURE_RECORD} says {record.digest}, the content gives "
            f"{found.digest}; copy it again"
        )
    return found


def _own_part(folder: Path, digest: str) -> Expert:
    place = _part_folder(folder, digest)
    found = read_expert(place)
    if found.digest != digest:
        raise ExpertError(f"{place}: holds {found.digest}, expected {digest}; copy it again")
    return found


def _part_folder(folder: Path, digest: str) -> Path:
    return folder / _PARTS / digest.removeprefix("sha256:")


def write_mixture(mixture: MixedExpert, folder: Path) -> Path:
    """Write a mixture folder with its parts, whole or not at all.

    Raises:
        ExpertError: the folder holds something else.
    """
    check_name(mixture.head.name)
    check_place(folder, "mixture folder")
    if folder.is_dir() and any(folder.iterdir()) and not holds_mixture(folder):
        raise ExpertError(
            f"{folder}: holds something, and no {MIXTURE_RECORD}; a mixture would replace it all, "
            "choose another folder"
        )
    with atomic_folder(folder) as temporary:
        write_mixture_record(mixture, temporary)
        for part in {part.digest: part for part in mixture.parts}.values():
            write_expert(part, _part_folder(temporary, part.digest))
    return folder


def write_mixture_record(mixture: MixedExpert, folder: Path) -> None:
    """Write a mixture without its parts into an existing folder."""
    from pidep.artifacts.mixture_record import MixtureRecord

    write_label_embeddings(folder, mixture.head)
    MixtureRecord(
        digest=mixture.digest,
        head=record_of(replace(mixture.head, sites={})).to_json(),
        parts=tuple(part.digest for part in mixture.parts),
        alphas={site: tuple(map(float, alpha)) for site, alpha in sorted(mixture.alphas.items())},
    ).write(folder)
