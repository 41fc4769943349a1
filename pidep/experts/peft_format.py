"""PEFT's own folders, read and written: LoRA, prompt tuning, prefix tuning. No torch.

adapter_config.json        what PEFT's `PeftConfig` saves
adapter_model.safetensors  LoRA: base_model.model.<site>.lora_A.weight [r, in] and lora_B.weight [out, r]
                           prompt tuning: prompt_embeddings [P, D]
                           prefix tuning: prompt_embeddings [P, layers × 2 × heads × head_dim], a layer's keys before its values

A prompt or prefix does not name its sites: `PeftAdapter.at` gives the layers to the sites of a backbone in their order.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pidep.errors import ExpertError
from pidep.files.tensor_file import read_json, read_tensors

__all__ = ["PEFT_TYPES", "PeftAdapter", "in_layer_order", "lora_names", "peft_config", "peft_tensors", "read_peft", "read_peft_lora"]

Array = npt.NDArray[np.float32]
PEFT_TYPES = {"lora": "LORA", "prompt": "PROMPT_TUNING", "prefix": "PREFIX_TUNING"}
"""The kinds that PEFT has, by PEFT's names."""
_PREFIX = "base_model.model."
_REFUSED: dict[str, tuple[Any, ...]] = {
    "use_dora": (False, None),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "bias": ("none", None),
    "lora_bias": (False, None),
    "modules_to_save": (None, []),
    "layer_replication": (None, []),
    "trainable_token_indices": (None, []),
    "target_parameters": (None, []),
    "use_qalora": (False, None),
    "init_lora_weights": (True, False, None, "gaussian", "orthogonal"),  # the others change the backbone's weights, too
    "alora_invocation_tokens": (None, []),
    "use_bdlora": (None, False),
    "arrow_config": (None,),
    "kasa_config": (None,),
}
"""What changes the answers and pidep does not have; fan_in_fan_out is not here, because it only says how PEFT merges into a Conv1D."""


@dataclass(frozen=True)
class PeftAdapter:
    """What a PEFT folder holds."""

    kind: str
    layers: tuple[Mapping[str, Array], ...]
    """Tensors of each site: a LoRA's in the order of `sites`, a prompt's one, a prefix's layer by layer."""
    sites: tuple[str, ...] = ()
    """Names of a LoRA's sites; a prompt and a prefix leave them to the backbone."""
    scaling: float = 1.0
    rank_stabilized: bool = False

    def at(self, places: Sequence[str]) -> dict[str, Mapping[str, Array]]:
        """Site to tensors; `places` are all sites that the backbone has for this kind.

        Raises:
            ExpertError: the backbone has another number of layers.
        """
        names = self.sites or in_layer_order(places)
        if len(names) != len(self.layers):
            raise ExpertError(
                f"PEFT {PEFT_TYPES[self.kind]} adapter: has {len(self.layers)} layers, the backbone has {len(names)}; "
                "it belongs to another backbone"
            )
        return dict(zip(names, self.layers, strict=True))


def in_layer_order(sites: Sequence[str]) -> list[str]:
    """Sorted with layer 2 before layer 10."""
    return sorted(sites, key=lambda site: [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", site)])


def lora_names(sites: Mapping[str, Mapping[str, Array]]) -> dict[str, Array]:
    """A LoRA's tensors by PEFT's names."""
    return {f"{_PREFIX}{site}.{name}.weight": tensors[name] for site, tensors in sites.items() for name in ("lora_A", "lora_B")}


def peft_config(
    kind: str, sites: Mapping[str, Mapping[str, Array]], *, backbone: str, scaling: float = 1.0, rank_stabilized: bool = False
) -> dict[str, Any]:
    """adapter_config.json."""
    first = next(iter(sites.values()))
    config: dict[str, Any] = {
        "peft_type": PEFT_TYPES[kind],
        "task_type": "FEATURE_EXTRACTION",
        "base_model_name_or_path": backbone,
        "inference_mode": True,
    }
    if kind == "lora":
        rank = len(first["lora_A"])
        config |= {
            "r": rank,
            "lora_alpha": scaling * (math.sqrt(rank) if rank_stabilized else rank),
            "lora_dropout": 0.0,
            "bias": "none",
            "target_modules": sorted(sites),
        }
        return config | {"use_rslora": True} if rank_stabilized else config
    config |= {"num_transformer_submodules": 1}
    if kind == "prompt":
        tokens, width = first["prompt"].shape
        # layers and heads mean nothing to a prompt, but PEFT looks for them in the backbone's config and gives up on DistilBERT's
        return config | {"num_virtual_tokens": tokens, "token_dim": width, "num_layers": 1, "num_attention_heads": 1}
    # width and heads are left to PEFT, which finds them in the backbone's config, grouped-query attention included
    return config | {"num_virtual_tokens": len(first["key"]), "num_layers": len(sites), "prefix_projection": False}


def peft_tensors(kind: str, sites: Mapping[str, Mapping[str, Array]]) -> dict[str, Array]:
    """The content of adapter_model.safetensors."""
    if kind == "lora":
        return lora_names(sites)
    ordered = [sites[name] for name in in_layer_order(list(sites))]
    parts = [tensors[name] for tensors in ordered for name in (("prompt",) if kind == "prompt" else ("key", "value"))]
    return {"prompt_embeddings": np.ascontiguousarray(np.concatenate(parts, axis=1))}


def read_peft(folder: Path) -> PeftAdapter:
    """A folder that PEFT or pidep wrote.

    Raises:
        ExpertError: damaged, or something pidep cannot honour; it is named.
    """
    where = folder / "adapter_config.json"
    config = read_json(where)
    kind = next((kind for kind, name in PEFT_TYPES.items() if name == config.get("peft_type")), None)
    if kind is None:
        raise ExpertError(f"{where}: peft_type is {config.get('peft_type')!r}, expected {' or '.join(map(repr, PEFT_TYPES.values()))}")
    for key, allowed in _REFUSED.items():
        if key in config and config[key] not in allowed:
            raise ExpertError(f"{where}: {key}={config[key]!r} is not supported; train the expert without it")
    if kind == "lora":
        return _read_lora(folder, config)
    return _read_virtual_tokens(folder, config, kind)


def read_peft_lora(folder: Path) -> tuple[dict[str, Mapping[str, Array]], float]:
    """Sites and scaling of a PEFT LoRA folder; what pidep cannot honour is refused by name."""
    where = folder / "adapter_config.json"
    found = read_json(where).get("peft_type")
    if found != "LORA":
        raise ExpertError(f"{where}: peft_type is {found!r}, expected 'LORA'")
    adapter = read_peft(folder)
    return adapter.at([]), adapter.scaling


def _read_lora(folder: Path, config: Mapping[str, Any]) -> PeftAdapter:
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise ExpertError(
            f"{folder / 'adapter_config.json'}: expected r >= 1 and a numeric lora_alpha, found r={rank!r}, lora_alpha={alpha!r}"
        )
    stabilized = bool(config.get("use_rslora"))
    path = folder / "adapter_model.safetensors"
    factors: dict[str, dict[str, Array]] = {}
    for name, array in read_tensors(path).items():
        match = re.fullmatch(r"base_model\.model\.(.+)\.(lora_[AB])\.weight", name)
        if not match:
            raise ExpertError(f"{path}: unexpected tensor {name!r}; expected base_model.model.<site>.lora_A.weight or lora_B.weight")
        if array.dtype.kind != "f" or array.ndim != 2 or array.shape[0 if match[2] == "lora_A" else 1] != rank:
            raise ExpertError(f"{path}: {name} is {array.dtype} {array.shape}, expected a float matrix of rank {rank}")
        factors.setdefault(match[1], {})[match[2]] = _finite(array, name, path)
    if not factors:
        raise ExpertError(f"{path}: holds no LoRA tensors")
    for site, pair in factors.items():
        if len(pair) != 2:
            raise ExpertError(f"{path}: site {site!r} has {next(iter(pair))} only; both lora_A and lora_B are needed")
    sites = tuple(sorted(factors))
    layers = tuple({"lora_A": factors[site]["lora_A"], "lora_B": factors[site]["lora_B"]} for site in sites)
    return PeftAdapter("lora", layers, sites, float(alpha) / (math.sqrt(rank) if stabilized else rank), stabilized)


def _read_virtual_tokens(folder: Path, config: Mapping[str, Any], kind: str) -> PeftAdapter:
    where, path = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    submodules = config.get("num_transformer_submodules") or 1
    if kind == "prefix" and submodules != 1:
        raise ExpertError(
            f"{where}: num_transformer_submodules={submodules} (encoder-decoder) is not supported; train the expert with pidep"
        )
    tensors = read_tensors(path)
    array = tensors.get("prompt_embeddings")
    if array is None or len(tensors) != 1:
        raise ExpertError(f"{path}: expected one tensor 'prompt_embeddings', found {', '.join(sorted(tensors)) or 'none'}")
    tokens, num_layers = config.get("num_virtual_tokens"), config.get("num_layers") if kind == "prefix" else 1
    if not isinstance(tokens, int) or tokens < 1 or not isinstance(num_layers, int) or num_layers < 1:
        raise ExpertError(
            f"{where}: expected num_virtual_tokens >= 1 and num_layers >= 1, found {tokens!r} and {config.get('num_layers')!r}"
        )
    columns = 2 * num_layers if kind == "prefix" else 1
    # of an encoder-decoder's prompt PEFT keeps a second half for the decoder, which it never uses
    if array.dtype.kind != "f" or array.ndim != 2 or len(array) != tokens * submodules or array.shape[1] % columns:
        raise ExpertError(
            f"{path}: prompt_embeddings is {array.dtype} {array.shape}, expected floats of {tokens} tokens and {columns} equal parts"
        )
    parts = np.split(_finite(array[:tokens], "prompt_embeddings", path), columns, axis=1)
    if kind == "prompt":
        return PeftAdapter(kind, ({"prompt": parts[0]},))
    pairs = zip(parts[::2], parts[1::2], strict=True)
    return PeftAdapter(kind, tuple({"key": np.ascontiguousarray(key), "value": np.ascontiguousarray(value)} for key, value in pairs))


def _finite(array: npt.NDArray[Any], name: str, path: Path) -> Array:
    if not np.isfinite(array).all():
        raise ExpertError(f"{path}: {name} holds NaN or Inf; train the expert again with a smaller learning rate")
    return np.ascontiguousarray(array, dtype=np.float32)
