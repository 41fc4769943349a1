"""An expert on disk: PEFT's format for LoRA, one plain file for other kinds, plus `expert.json`; no torch, never pickle.

adapter_config.json         (LoRA) PEFT's, as PEFT writes it
adapter_model.safetensors   (LoRA) PEFT's tensor names: base_model.model.<site>.lora_A.weight [r, in], lora_B.weight [out, r]
expert.safetensors          (other kinds) <site>.<tensor>, fp32
labels.safetensors          label_embeddings [C, D] fp32, unit rows: the bare backbone's reading of the label texts
expert.json                 what PEFT has no room for: backbone digest, labels, metrics, provenance, digest
fisher.safetensors          (optional) the task embedding, one fp32 tensor per expert tensor
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from pidep.atomic_write import atomic_folder
from pidep.errors import ExpertError

__all__ = ["KIND_NAMES", "SCHEMA", "Expert", "check_name", "read_expert", "read_peft_lora", "read_tensors", "write_expert"]

SCHEMA = 1
KIND_NAMES = ("lora", "adapter", "prefix", "prompt", "bitfit")
Array = npt.NDArray[np.float32]
_PREFIX = "base_model.model."
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")
_MAX_HEADER_BYTES = 4 * 1024 * 1024
_REFUSED: dict[str, tuple[Any, ...]] = {
    "use_dora": (False, None),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "bias": ("none", None),
    "lora_bias": (False, None),
    "modules_to_save": (None, []),
    "fan_in_fan_out": (False, None),
    "layer_replication": (None, []),
    "trainable_token_indices": (None, []),
    "target_parameters": (None, []),
    "use_qalora": (False, None),
}


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
    """[C, D] fp32, unit rows."""
    logit_scale: float
    max_length: int
    """Tokens a text is cut to; the server cuts at the same place."""
    backbone: str = ""
    metrics: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    kind: str = "lora"

    @property
    def rank(self) -> int:
        """Rank of a LoRA, shared by all sites."""
        return len(next(iter(self.sites.values()))["lora_A"])

    def tensors(self) -> dict[str, Array]:
        """Names in the file to arrays."""
        if self.kind == "lora":
            return {
                f"{_PREFIX}{site}.{name}.weight": tensors[name] for site, tensors in self.sites.items() for name in ("lora_A", "lora_B")
            }
        return {f"{site}.{name}": array for site, tensors in self.sites.items() for name, array in tensors.items()}

    @property
    def digest(self) -> str:
        """SHA-256 over everything that decides an answer; metrics and provenance are not part of it."""
        head = {
            "backbone": self.backbone_digest,
            "kind": self.kind,
            "labels": self.labels,
            "logit_scale": self.logit_scale,
            "max_length": self.max_length,
            "scaling": self.scaling,
            "schema": SCHEMA,
        }
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


def read_tensors(path: Path) -> dict[str, npt.NDArray[Any]]:
    """A safetensors file as arrays, its header bounded before anything is parsed."""
    if path.is_symlink() or not path.is_file():
        raise ExpertError(f"{path}: expected a plain safetensors file, found none; re-export or re-train the expert")
    data = path.read_bytes()
    if len(data) < 8:
        raise ExpertError(f"{path}: truncated safetensors file ({len(data)} bytes, a header needs 8); copy or train it again")
    (header_bytes,) = struct.unpack("<Q", data[:8])
    if header_bytes > min(_MAX_HEADER_BYTES, len(data) - 8):
        raise ExpertError(
            f"{path}: safetensors header claims {header_bytes} bytes, the file has {len(data) - 8} after it "
            f"(at most {_MAX_HEADER_BYTES} allowed): truncated or not safetensors; copy or train it again"
        )
    try:
        return dict(load_safetensors(data))
    except (SafetensorError, ValueError, KeyError) as error:
        raise ExpertError(f"{path}: truncated or damaged safetensors file ({error}); copy or train it again") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ExpertError(f"{path}: no such file; expected an expert folder with {path.name} in it") from error
    except (OSError, ValueError) as error:
        raise ExpertError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(value, dict):
        raise ExpertError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def read_peft_lora(folder: Path) -> tuple[dict[str, Mapping[str, Array]], float]:
    """Sites and scaling of a PEFT LoRA folder; what pidep cannot honour is refused by name."""
    config = _read_json(folder / "adapter_config.json")
    where = folder / "adapter_config.json"
    if config.get("peft_type") != "LORA":
        raise ExpertError(f"{where}: peft_type is {config.get('peft_type')!r}, expected 'LORA'")
    for key, allowed in _REFUSED.items():
        if key in config and config[key] not in allowed:
            raise ExpertError(f"{where}: {key}={config[key]!r} is not supported; train the expert without it")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float):
        raise ExpertError(f"{where}: expected r >= 1 and a numeric lora_alpha, found r={rank!r}, lora_alpha={alpha!r}")
    scaling = float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)
    path = folder / "adapter_model.safetensors"
    factors: dict[str, dict[str, Array]] = {}
    for name, array in read_tensors(path).items():
        match = re.fullmatch(r"base_model\.model\.(.+)\.lora_([AB])\.weight", name)
        if not match:
            raise ExpertError(f"{path}: unexpected tensor {name!r}; expected base_model.model.<site>.lora_A.weight or lora_B.weight")
        if array.dtype.kind != "f" or array.ndim != 2 or array.shape[0 if match[2] == "A" else 1] != rank:
            raise ExpertError(f"{path}: {name} is {array.dtype} {array.shape}, expected a float matrix of rank {rank}")
        if not np.isfinite(array).all():
            raise ExpertError(f"{path}: {name} holds NaN or Inf; train the expert again with a smaller learning rate")
        factors.setdefault(match[1], {})[match[2]] = np.ascontiguousarray(array, dtype=np.float32)
    if not factors:
        raise ExpertError(f"{path}: holds no LoRA tensors")
    for site, pair in factors.items():
        if len(pair) != 2:
            raise ExpertError(f"{path}: site {site!r} has lora_{next(iter(pair))} only; both lora_A and lora_B are needed")
    return {site: {"lora_A": factors[site]["A"], "lora_B": factors[site]["B"]} for site in sorted(factors)}, scaling


def _read_sites(path: Path) -> dict[str, Mapping[str, Array]]:
    """Sites of an expert that is not a LoRA."""
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
    record = _read_json(folder / "expert.json")
    where = folder / "expert.json"
    kind = record.get("kind")
    if record.get("schema") != SCHEMA or kind not in KIND_NAMES:
        raise ExpertError(
            f"{where}: schema {record.get('schema')!r}, kind {kind!r}; this pidep reads schema {SCHEMA}, kinds {', '.join(KIND_NAMES)}"
        )
    sites, scaling = read_peft_lora(folder) if kind == "lora" else (_read_sites(folder / "expert.safetensors"), 1.0)
    labels = read_tensors(folder / "labels.safetensors").get("label_embeddings")
    try:
        expert = Expert(
            name=check_name(record["name"]),
            backbone_digest=record["backbone_digest"],
            backbone=record["backbone"],
            sites=sites,
            scaling=scaling,
            labels=tuple(record["labels"]),
            label_texts=tuple(record["label_texts"]),
            label_embeddings=np.ascontiguousarray(labels, dtype=np.float32),
            logit_scale=float(record["logit_scale"]),
            max_length=int(record["max_length"]),
            metrics=record.get("metrics", {}),
            provenance=record.get("provenance", {}),
            kind=kind,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ExpertError(f"{where}: missing or malformed entry ({error}); write it again with pidep tune or pidep import") from error
    if expert.label_embeddings.ndim != 2 or len(expert.labels) != len(expert.label_embeddings) or not expert.labels:
        raise ExpertError(f"{folder}: {len(expert.labels)} labels but label_embeddings {expert.label_embeddings.shape}")
    if not np.isfinite(expert.label_embeddings).all():
        raise ExpertError(f"{folder / 'labels.safetensors'}: label_embeddings holds NaN or Inf")
    if expert.digest != record.get("digest"):
        raise ExpertError(
            f"{folder}: digest mismatch, {where.name} says {record.get('digest')}, the tensors give {expert.digest}; copy it again"
        )
    return expert


def _peft_config(expert: Expert) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "task_type": "FEATURE_EXTRACTION",
        "base_model_name_or_path": expert.backbone,
        "inference_mode": True,
        "r": expert.rank,
        "lora_alpha": expert.scaling * expert.rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted(expert.sites),
    }


def write_expert(expert: Expert, folder: str | Path, *, fisher: dict[str, Array] | None = None) -> Path:
    """Write an expert folder at once (whole or not at all); a LoRA is loadable by `peft.PeftModel.from_pretrained`."""
    check_name(expert.name)
    folder = Path(folder)
    record = {
        "schema": SCHEMA,
        "name": expert.name,
        "kind": expert.kind,
        "digest": expert.digest,
        "backbone": expert.backbone,
        "backbone_digest": expert.backbone_digest,
        "sites": sorted(expert.sites),
        "labels": expert.labels,
        "label_texts": expert.label_texts,
        "logit_scale": expert.logit_scale,
        "max_length": expert.max_length,
        "metrics": expert.metrics,
        "provenance": expert.provenance,
    }
    with atomic_folder(folder) as temporary:
        if expert.kind == "lora":
            (temporary / "adapter_config.json").write_text(json.dumps(_peft_config(expert), indent=2) + "\n")
        name = "adapter_model.safetensors" if expert.kind == "lora" else "expert.safetensors"
        (temporary / name).write_bytes(save_safetensors(expert.tensors(), metadata={"format": "pt"}))
        (temporary / "labels.safetensors").write_bytes(save_safetensors({"label_embeddings": expert.label_embeddings}))
        if fisher is not None:
            (temporary / "fisher.safetensors").write_bytes(save_safetensors(fisher))
        (temporary / "expert.json").write_text(json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    return folder
