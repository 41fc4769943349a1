"""An expert on disk: PEFT's format where PEFT has the kind, one plain file elsewhere.

    adapter_config.json         (LoRA, prompt, prefix) as PEFT writes it
    adapter_model.safetensors   (LoRA, prompt, prefix) PEFT's tensors, see `peft_format`
    expert.safetensors          (kinds that PEFT cannot run) <site>.<tensor>, fp32
    labels.safetensors          (backbones that embed) label_embeddings [C, D] fp32, unit rows,
                                made by the bare backbone from the label texts
    expert.json                 what PEFT has no room for, see `pidep.artifacts.expert_record`
    fisher.safetensors          (optional) the task embedding, one fp32 tensor per expert tensor

An expert of an encoder-decoder scores label texts or answers freely. It has no label embeddings;
its digest covers the label texts and the length of its answers instead. Schema 3 has the task's
template. Schemas 1 (embeds) and 2 (encoder-decoder) do not; they are still read and written, with
the digests that they had. Schema 4 has a bias of the labels, too. Nothing here imports torch or
reads pickle.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pidep.artifacts.names import (
    BIAS_SCHEMA,
    EXPERT_RECORD,
    SCHEMA,
    TASK_EMBEDDING,
    TEMPLATE_SCHEMA,
    TEXT_SCHEMA,
)
from pidep.errors import ExpertError
from pidep.experts.finite import as_finite_fp32
from pidep.experts.kind import Array
from pidep.experts.kind_names import kind_names
from pidep.experts.kinds import expert_kind
from pidep.experts.peft_folder import write_peft
from pidep.experts.peft_format import at_sites, read_peft
from pidep.experts.validation import require_valid
from pidep.files.atomic_write import atomic_folder, check_place
from pidep.files.tensor_file import read_tensors, tensor_bytes
from pidep.inputs.template import Template

if TYPE_CHECKING:  # pydantic: mixing experts needs no file, and GPU checks run without it
    from pidep.artifacts.expert_record import ExpertRecord

__all__ = [
    "Expert",
    "check_name",
    "expert_of",
    "read_expert",
    "read_label_embeddings",
    "record_of",
    "write_expert",
    "write_label_embeddings",
]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")


@dataclass(frozen=True)
class Expert:
    """Named tensors for the sites of one backbone, learned on one task."""

    name: str
    backbone_digest: str
    sites: dict[str, Mapping[str, Array]]
    """Site to tensors by name. LoRA: lora_A [rank, in], lora_B [out, rank], ΔW = scaling · B A."""
    scaling: float
    """s in ΔW = s·BA: lora_alpha / rank, or lora_alpha / sqrt(rank) with rsLoRA; 1 for other kinds.
    """
    labels: tuple[str, ...]
    label_texts: tuple[str, ...]
    label_embeddings: Array
    """[C, D] fp32, unit rows. D is 0 for an encoder-decoder, which scores the label texts
    themselves.
    """
    logit_scale: float
    max_length: int
    """Texts are cut at this many tokens, in training and in serving."""
    backbone: str = ""
    metrics: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    kind: str = "lora"
    peft: bool | None = None
    """Whether `peft` can run the expert on this backbone; None where nobody looked. It decides
    which files are written and is not part of the digest.
    """
    rank_stabilized: bool = False
    """Whether a LoRA's scaling is rsLoRA's, as PEFT's config records it. Not part of the digest."""
    max_answer_length: int | None = None
    """Tokens of a free answer, for an encoder-decoder that answers freely."""
    template: Template | None = None
    """How the task makes a text of a row's columns; None for an expert of an older release."""
    label_bias: tuple[float, ...] = ()
    """[C] nats, added to the labels' logits; empty for none. Candidates of a row have none."""

    @property
    def schema(self) -> int:
        """4 with a bias, 3 with a template. Without both, 1 where the backbone embeds, 2 for an
        encoder-decoder.
        """
        if self.label_bias:
            return BIAS_SCHEMA
        if self.template is not None:
            return TEMPLATE_SCHEMA
        return TEXT_SCHEMA if self.scores_texts else SCHEMA

    @property
    def scores_texts(self) -> bool:
        """Whether the expert belongs to an encoder-decoder, which embeds nothing."""
        return self.label_embeddings.ndim == 2 and self.label_embeddings.shape[1] == 0

    @property
    def in_peft_format(self) -> bool:
        """Whether the expert is written as a PEFT adapter."""
        return expert_kind(self.kind).written_for_peft(self.sites, peft_can=self.peft)

    @property
    def rank(self) -> int:
        """Rank, bottleneck width or number of virtual tokens; the same at all sites."""
        return expert_kind(self.kind).size_of(next(iter(self.sites.values())))

    def tensors(self) -> dict[str, Array]:
        """Names to arrays as they enter the digest."""
        return expert_kind(self.kind).named(self.sites)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over everything that decides an answer. Metrics and provenance do not.

        It is computed once: arrays of an expert are not changed.
        """
        head: dict[str, Any] = {
            "backbone": self.backbone_digest,
            "kind": self.kind,
            "labels": self.labels,
            "logit_scale": self.logit_scale,
            "max_length": self.max_length,
            "scaling": self.scaling,
            "schema": self.schema,
        }
        if self.scores_texts:
            head |= {"label_texts": self.label_texts, "max_answer_length": self.max_answer_length}
        if self.template is not None:
            head["template"] = self.template.to_json()
        if self.label_bias:
            head["label_bias"] = self.label_bias
        sha = hashlib.sha256(json.dumps(head, sort_keys=True).encode())
        # Label texts of schema 1 stay outside: their embeddings decide the answers, and they are
        # inside.
        named = {**self.tensors(), "label_embeddings": self.label_embeddings}
        for name in sorted(named):
            # Little-endian fp32 in C order, so that every machine hashes the same bytes.
            array = np.ascontiguousarray(named[name], dtype="<f4")
            # The shape too: the same bytes as [2, 8] and [4, 4] are different experts.
            sha.update(f"\n{name} {array.shape} ".encode())
            sha.update(array.tobytes())
        return "sha256:" + sha.hexdigest()


def check_name(name: str) -> str:
    """The name, if it is allowed: letters, digits, dot, underscore, dash.

    At most 128; no leading dot.
    """
    if not _NAME.match(name):
        raise ExpertError(
            f"expert name {name[:40]!r}: expected letters, digits, '.', '_' or '-' (1 to 128, not "
            "starting with '.'); choose another name"
        )
    return name


def _read_sites(folder: Path) -> dict[str, Mapping[str, Array]]:
    """Sites of an expert in pidep's own format."""
    path = folder / "expert.safetensors"
    sites: dict[str, dict[str, Array]] = {}
    for full, array in read_tensors(path).items():
        site, _, name = full.rpartition(".")
        if not site or array.dtype != np.float32 or as_finite_fp32(array) is None:
            raise ExpertError(
                f"{path}: {full} is {array.dtype} {array.shape}, expected <site>.<tensor> of "
                "finite float32; train it again"
            )
        sites.setdefault(site, {})[name] = array
    if not sites:
        raise ExpertError(f"{path}: holds no tensors")
    return dict(sorted(sites.items()))


def read_expert(folder: str | Path, *, expected: str | None = None) -> Expert:
    """Read and verify an expert folder.

    Args:
        expected: the digest that it must have.

    Raises:
        ExpertError: a file is missing, damaged or unsupported, the recorded digest does not match
            the content, or it is not the expected one.
    """
    from pidep.artifacts.expert_record import ExpertRecord

    folder = Path(folder)
    if not folder.is_dir():
        raise ExpertError(
            f"{folder}: no such expert folder; give the folder that holds expert.json"
        )
    where = folder / EXPERT_RECORD
    record = ExpertRecord.read(where)
    # The kind is checked before any tensor is read, because the kind says which files to read.
    if record.kind not in kind_names():
        raise ExpertError(
            f"{where}: kind {record.kind!r}, this pidep has {', '.join(kind_names())}; "
            "install the package that adds the kind"
        )
    # A LoRA without its PEFT config is damaged. Other kinds without one are in pidep's own format.
    kind = expert_kind(record.kind)
    in_peft = kind.only_in_peft or (folder / "adapter_config.json").is_file()
    sites, scaling, stabilized = (
        _read_peft_sites(folder, record) if in_peft else (_read_sites(folder), 1.0, False)
    )
    expert = expert_of(
        record,
        sites,
        scaling=scaling,
        label_embeddings=read_label_embeddings(folder, record),
        peft=True if in_peft else None,
        rank_stabilized=stabilized,
    )
    require_valid(expert, where=str(folder))
    # Over the content as it was read, so that any damage shows, in whichever file.
    found = expert.digest
    if found != record.digest:
        raise ExpertError(
            f"{folder}: digest mismatch, {where.name} says {record.digest}, the tensors give "
            f"{found}; copy it again"
        )
    if expected is not None and found != expected:
        raise ExpertError(f"{folder}: holds {found}, expected {expected}; publish it again")
    return expert


def expert_of(
    record: ExpertRecord,
    sites: dict[str, Mapping[str, Array]],
    *,
    scaling: float,
    label_embeddings: Array,
    peft: bool | None = None,
    rank_stabilized: bool = False,
) -> Expert:
    """The expert of a record and its tensors, which are not checked here."""
    return Expert(
        name=check_name(record.name),
        backbone=record.backbone,
        backbone_digest=record.backbone_digest,
        sites=sites,
        scaling=scaling,
        labels=record.labels,
        label_texts=record.label_texts,
        label_embeddings=label_embeddings,
        logit_scale=record.logit_scale,
        max_length=record.max_length,
        metrics=record.metrics,
        provenance=record.provenance,
        kind=record.kind,
        peft=peft,
        rank_stabilized=rank_stabilized,
        max_answer_length=record.max_answer_length,
        template=record.template,
        label_bias=record.label_bias,
    )


def record_of(expert: Expert) -> ExpertRecord:
    """What `expert.json` says about an expert."""
    from pidep.artifacts.expert_record import ExpertRecord

    return ExpertRecord(
        schema=expert.schema,
        name=expert.name,
        kind=expert.kind,
        digest=expert.digest,
        backbone=expert.backbone,
        backbone_digest=expert.backbone_digest,
        sites=tuple(sorted(expert.sites)),
        scaling=expert.scaling,
        labels=expert.labels,
        label_texts=expert.label_texts,
        logit_scale=expert.logit_scale,
        max_length=expert.max_length,
        max_answer_length=expert.max_answer_length,
        template=expert.template,
        scores_texts=expert.scores_texts and expert.schema >= TEMPLATE_SCHEMA,
        label_bias=expert.label_bias,
        metrics=expert.metrics,
        provenance=expert.provenance,
    )


def read_label_embeddings(folder: Path, record: ExpertRecord) -> Array:
    """The label embeddings `[C, D]` fp32 in a folder; D is 0 where the backbone embeds nothing.

    Raises:
        ExpertError: the file is missing or damaged.
    """
    if not record.embeds:
        return np.zeros((len(record.labels), 0), np.float32)
    path = folder / "labels.safetensors"
    labels = read_tensors(path).get("label_embeddings")
    if labels is None:
        raise ExpertError(
            f"{path}: expected a tensor 'label_embeddings', found none; copy the expert again"
        )
    if as_finite_fp32(labels) is None:
        raise ExpertError(
            f"{path}: label_embeddings is {labels.dtype} and holds NaN or Inf, or no floats; copy "
            "the expert again"
        )
    return np.ascontiguousarray(labels, np.float32)


def _read_peft_sites(
    folder: Path, record: ExpertRecord
) -> tuple[dict[str, Mapping[str, Array]], float, bool]:
    """Sites, scaling, and whether the scaling is rsLoRA's."""
    adapter = read_peft(folder)
    if adapter.kind != record.kind:
        raise ExpertError(
            f"{folder / 'adapter_config.json'}: holds a {adapter.kind}, expert.json says "
            f"{record.kind}; copy it again"
        )
    # PEFT keeps s as lora_alpha, and s · r / r is not always s again. expert.json has the exact s.
    scaling = adapter.scaling if record.scaling is None else record.scaling
    # PEFT reads that file. With two scalings it would run another expert than pidep.
    if not math.isclose(scaling, adapter.scaling, rel_tol=1e-9):
        raise ExpertError(
            f"{folder / 'adapter_config.json'}: lora_alpha and r make a scaling of "
            f"{adapter.scaling}, "
            f"expert.json says {scaling}; copy it again"
        )
    return at_sites(adapter, record.sites), scaling, adapter.rank_stabilized


def check_expert_place(folder: Path) -> None:
    """Refuse to replace a folder that is not an expert.

    Raises:
        UsageError: the folder is a file or lies below one.
        ExpertError: it holds something other than an expert.
    """
    check_place(folder, "expert folder")
    # `--out .` in a full folder would otherwise replace it.
    if folder.is_dir() and any(folder.iterdir()) and not (folder / EXPERT_RECORD).is_file():
        raise ExpertError(
            f"{folder}: holds something, and no expert.json; an expert would replace it all, "
            "choose another folder"
        )


def write_expert(
    expert: Expert, folder: str | Path, *, fisher: dict[str, Array] | None = None
) -> Path:
    """Write an expert folder, whole or not at all.

    `peft.PeftModel.from_pretrained` loads it where PEFT has the kind.

    Raises:
        ExpertError: the expert cannot answer, or the folder holds something else.
    """
    check_name(expert.name)
    require_valid(expert)
    folder = Path(folder)
    check_expert_place(folder)
    record = record_of(expert)
    with atomic_folder(folder) as temporary:
        _write_tensors(expert, temporary)
        write_label_embeddings(temporary, expert)
        if fisher is not None:
            (temporary / TASK_EMBEDDING).write_bytes(tensor_bytes(fisher))
        record.write(temporary / EXPERT_RECORD)
    return folder


def write_label_embeddings(folder: Path, expert: Expert) -> None:
    """Write what `read_label_embeddings` reads."""
    if not expert.scores_texts:
        (folder / "labels.safetensors").write_bytes(
            tensor_bytes({"label_embeddings": expert.label_embeddings})
        )


def _write_tensors(expert: Expert, folder: Path) -> None:
    """The tensors, in PEFT's format with its configuration where PEFT has the kind."""
    if expert.in_peft_format:
        write_peft(expert, folder)
        return
    (folder / "expert.safetensors").write_bytes(
        tensor_bytes(expert.tensors(), metadata={"format": "pt"})
    )
