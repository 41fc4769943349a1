"""An expert on disk: PEFT's format where PEFT has one, one plain file where it has none, plus `expert.json`; no torch, never pickle.

adapter_config.json         (LoRA, prompt, prefix) PEFT's, as PEFT writes it
adapter_model.safetensors   (LoRA, prompt, prefix) PEFT's tensors: see `peft_format`
expert.safetensors          (what PEFT cannot run) <site>.<tensor>, fp32
labels.safetensors          label_embeddings [C, D] fp32, unit rows: the bare backbone's reading of the label texts; schema 1 only
expert.json                 what PEFT has no room for: backbone digest, sites, labels, metrics, provenance, digest
fisher.safetensors          (optional) the task embedding, one fp32 tensor per expert tensor

Schema 1 is an expert of a backbone that embeds. Schema 2 is one of an encoder-decoder, which scores label texts or answers freely: it has
no label embeddings, its label texts and the length of its answers are in the digest instead.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pidep import plugins
from pidep.errors import ExpertError
from pidep.experts.peft_format import lora_names, peft_config, peft_tensors, read_peft, read_peft_lora
from pidep.files.atomic_write import atomic_folder, check_place
from pidep.files.tensor_file import read_json, read_tensors, tensor_bytes

__all__ = [
    "KIND_NAMES",
    "SCHEMA",
    "TEXT_SCHEMA",
    "Expert",
    "check_name",
    "read_expert",
    "read_peft_lora",
    "read_tensors",
    "require_embeddings",
    "write_expert",
]

SCHEMA = 1
TEXT_SCHEMA = 2
KIND_NAMES = plugins.names("pidep.kinds")
Array = npt.NDArray[np.float32]
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")


@dataclass(frozen=True)
class Expert:
    """Named tensors for the sites of one backbone, learned on one task."""

    name: str
    backbone_digest: str
    sites: dict[str, Mapping[str, Array]]
    """Site to tensors by name; LoRA: lora_A [rank, in], lora_B [out, rank], ΔW = scaling · B A."""
    scaling: float
    """s in ΔW = s·BA: lora_alpha / rank, or lora_alpha / sqrt(rank) with rsLoRA; 1 for other kinds."""
    labels: tuple[str, ...]
    label_texts: tuple[str, ...]
    label_embeddings: Array
    """[C, D] fp32, unit rows; D is 0 where an encoder-decoder scores the label texts themselves."""
    logit_scale: float
    max_length: int
    """Tokens a text is cut to; the server cuts at the same place."""
    backbone: str = ""
    metrics: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    kind: str = "lora"
    peft: bool | None = None
    """Whether `peft` can run it on this backbone, where that is known (`places.peft_can`): a LoRA always, a prompt unless this says
    no, a prefix if this says yes and none of it has a bias. It decides the files, not the digest."""
    rank_stabilized: bool = False
    """Whether a LoRA's scaling is rsLoRA's; PEFT's config says so then. The scaling itself is in the digest, this is not."""
    max_answer_length: int | None = None
    """Tokens of a free answer, where an encoder-decoder gives free answers."""

    @property
    def schema(self) -> int:
        """1 for a backbone that embeds, 2 for an encoder-decoder."""
        return TEXT_SCHEMA if self.scores_texts else SCHEMA

    @property
    def scores_texts(self) -> bool:
        """Whether it is an encoder-decoder's, which scores and generates texts and embeds nothing."""
        return self.label_embeddings.ndim == 2 and self.label_embeddings.shape[1] == 0

    @property
    def in_peft_format(self) -> bool:
        """Whether it is written as a PEFT adapter."""
        if self.kind == "prefix":
            return self.peft is True and not any("bias" in tensors for tensors in self.sites.values())
        return {"lora": True, "prompt": len(self.sites) == 1 and self.peft is not False}.get(self.kind, False)

    @property
    def rank(self) -> int:
        """Rank of a LoRA, shared by all sites."""
        return len(next(iter(self.sites.values()))["lora_A"])

    def tensors(self) -> dict[str, Array]:
        """Names to arrays, as they enter the digest: PEFT's names for a LoRA, <site>.<tensor> for other kinds."""
        if self.kind == "lora":
            return lora_names(self.sites)
        return {f"{site}.{name}": array for site, tensors in self.sites.items() for name, array in tensors.items()}

    @property
    def digest(self) -> str:
        """SHA-256 over everything that decides an answer; metrics and provenance are not part of it."""
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
        sha = hashlib.sha256(json.dumps(head, sort_keys=True).encode())
        named = {**self.tensors(), "label_embeddings": self.label_embeddings}
        for name in sorted(named):
            array = np.ascontiguousarray(named[name], dtype="<f4")
            sha.update(f"\n{name} {array.shape} ".encode())
            sha.update(array.tobytes())
        return "sha256:" + sha.hexdigest()


def check_name(name: str) -> str:
    """`name` if it can be an expert's name: letters, digits, dot, underscore, dash; at most 128; no leading dot."""
    if not _NAME.match(name):
        raise ExpertError(
            f"expert name {name[:40]!r}: expected letters, digits, '.', '_' or '-' (1 to 128, not starting with '.'); choose another name"
        )
    return name


def require_embeddings(expert: Expert) -> None:
    """Refuse an expert that cannot be exported or served.

    Raises:
        ExpertError: it is an encoder-decoder's.
    """
    if expert.scores_texts:
        raise ExpertError(
            f"expert {expert.name!r}: is of the encoder-decoder {expert.backbone!r}; graphs, banks and servers hold experts of backbones "
            "that embed, use pidep generate"
        )


def _read_sites(folder: Path) -> dict[str, Mapping[str, Array]]:
    """Sites of an expert that PEFT has no format for."""
    path = folder / "expert.safetensors"
    sites: dict[str, dict[str, Array]] = {}
    for full, array in read_tensors(path).items():
        site, _, name = full.rpartition(".")
        if not site or array.dtype != np.float32 or not np.isfinite(array).all():
            raise ExpertError(f"{path}: {full} is {array.dtype} {array.shape}, expected <site>.<tensor> of finite float32; train it again")
        sites.setdefault(site, {})[name] = array
    if not sites:
        raise ExpertError(f"{path}: holds no tensors")
    return dict(sorted(sites.items()))


def read_expert(folder: str | Path) -> Expert:
    """Read and verify an expert folder.

    Raises:
        ExpertError: a file is missing, damaged or unsupported, or the recorded digest does not match the content.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ExpertError(f"{folder}: no such expert folder; give the folder that holds expert.json")
    record = read_json(folder / "expert.json")
    where = folder / "expert.json"
    kind = record.get("kind")
    schema = record.get("schema")
    if schema not in (SCHEMA, TEXT_SCHEMA) or kind not in KIND_NAMES:
        raise ExpertError(
            f"{where}: schema {schema!r}, kind {kind!r}; this pidep reads schema {SCHEMA} and {TEXT_SCHEMA}, kinds {', '.join(KIND_NAMES)}"
        )
    in_peft = kind == "lora" or (folder / "adapter_config.json").is_file()
    try:
        sites, scaling, stabilized = _read_peft_sites(folder, record) if in_peft else (_read_sites(folder), 1.0, False)
    except (KeyError, TypeError, ValueError) as error:
        raise _malformed(where, error) from error
    texts_only = schema == TEXT_SCHEMA
    labels = None if texts_only else read_tensors(folder / "labels.safetensors").get("label_embeddings")
    try:
        expert = Expert(
            name=check_name(record["name"]),
            backbone_digest=record["backbone_digest"],
            backbone=record["backbone"],
            sites=sites,
            scaling=scaling,
            labels=tuple(record["labels"]),
            label_texts=tuple(record["label_texts"]),
            label_embeddings=np.zeros((len(record["labels"]), 0), np.float32) if texts_only else np.ascontiguousarray(labels, np.float32),
            logit_scale=float(record["logit_scale"]),
            max_length=int(record["max_length"]),
            metrics=record.get("metrics", {}),
            provenance=record.get("provenance", {}),
            kind=kind,
            peft=True if in_peft else None,
            rank_stabilized=stabilized,
            max_answer_length=record["max_answer_length"] if texts_only else None,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise _malformed(where, error) from error
    if expert.label_embeddings.ndim != 2 or len(expert.labels) != len(expert.label_embeddings):
        raise ExpertError(f"{folder}: {len(expert.labels)} labels but label_embeddings {expert.label_embeddings.shape}")
    if not np.isfinite(expert.label_embeddings).all():
        raise ExpertError(f"{folder / 'labels.safetensors'}: label_embeddings holds NaN or Inf")
    if expert.digest != record.get("digest"):
        raise ExpertError(
            f"{folder}: digest mismatch, {where.name} says {record.get('digest')}, the tensors give {expert.digest}; copy it again"
        )
    return expert


def _malformed(where: Path, error: Exception) -> ExpertError:
    return ExpertError(f"{where}: missing or malformed entry ({error}); write it again with pidep tune or pidep import")


def _read_peft_sites(folder: Path, record: Mapping[str, Any]) -> tuple[dict[str, Mapping[str, Array]], float, bool]:
    """Sites, scaling, and whether that is rsLoRA's."""
    adapter = read_peft(folder)
    if adapter.kind != record["kind"]:
        raise ExpertError(f"{folder / 'adapter_config.json'}: holds a {adapter.kind}, expert.json says {record['kind']}; copy it again")
    # PEFT keeps s as lora_alpha, and s · r / r is not always s again: the exact one is in expert.json
    scaling = float(record.get("scaling", adapter.scaling))
    if not math.isclose(scaling, adapter.scaling, rel_tol=1e-9):
        raise ExpertError(
            f"{folder / 'adapter_config.json'}: lora_alpha and r make a scaling of {adapter.scaling}, "
            f"expert.json says {scaling}; copy it again"
        )
    return adapter.at([str(site) for site in record["sites"]]), scaling, adapter.rank_stabilized


def check_expert_place(folder: Path) -> None:
    """Refuse to write an expert over what is no expert.

    Raises:
        UsageError: the folder is a file or lies below one.
        ExpertError: it holds something else than an expert.
    """
    check_place(folder, "expert folder")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "expert.json").is_file():
        raise ExpertError(f"{folder}: holds something, and no expert.json; an expert would replace it all, choose another folder")


def write_expert(expert: Expert, folder: str | Path, *, fisher: dict[str, Array] | None = None) -> Path:
    """Write an expert folder at once (whole or not at all); what PEFT has, `peft.PeftModel.from_pretrained` loads."""
    check_name(expert.name)
    folder = Path(folder)
    check_expert_place(folder)
    record = {
        "schema": expert.schema,
        "name": expert.name,
        "kind": expert.kind,
        "digest": expert.digest,
        "backbone": expert.backbone,
        "backbone_digest": expert.backbone_digest,
        "sites": sorted(expert.sites),
        "scaling": expert.scaling,
        "labels": expert.labels,
        "label_texts": expert.label_texts,
        "logit_scale": expert.logit_scale,
        "max_length": expert.max_length,
        "metrics": expert.metrics,
        "provenance": expert.provenance,
    }
    if expert.scores_texts:
        record["max_answer_length"] = expert.max_answer_length
    with atomic_folder(folder) as temporary:
        if expert.in_peft_format:
            config = peft_config(
                expert.kind, expert.sites, backbone=expert.backbone, scaling=expert.scaling, rank_stabilized=expert.rank_stabilized
            )
            (temporary / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
            name, tensors = "adapter_model.safetensors", peft_tensors(expert.kind, expert.sites)
        else:
            name, tensors = "expert.safetensors", expert.tensors()
        (temporary / name).write_bytes(tensor_bytes(tensors, metadata={"format": "pt"}))
        if not expert.scores_texts:
            (temporary / "labels.safetensors").write_bytes(tensor_bytes({"label_embeddings": expert.label_embeddings}))
        if fisher is not None:
            (temporary / "fisher.safetensors").write_bytes(tensor_bytes(fisher))
        (temporary / "expert.json").write_text(json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    return folder
