"""PEFT's own folders, read and written. No torch.

    adapter_config.json        what PEFT's `PeftConfig` saves
    adapter_model.safetensors  LoRA: base_model.model.<site>.lora_A.weight [r, in], lora_B [out, r]
                               prompt tuning: prompt_embeddings [P, D]
                               prefix tuning: prompt_embeddings [P, layers × 2 × heads × head_dim],
                               a layer's keys before its values

Each kind has its own part of the format in `pidep.experts.kinds`. A prompt and a prefix do not
name their sites: `at_sites` gives the layers to the sites of a backbone in their order.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pidep.errors import ExpertError
from pidep.experts.finite import as_finite_fp32
from pidep.experts.kind import Array, PeftAdapter, Sites, Tensors
from pidep.experts.kind_names import kind_names
from pidep.experts.kinds import expert_kind
from pidep.experts.peft_fields import require_harmless
from pidep.files.bounded_read import read_json
from pidep.files.tensor_file import read_tensors

__all__ = [
    "CONFIG",
    "TENSORS",
    "at_sites",
    "finite",
    "in_layer_order",
    "joined",
    "peft_adapter",
    "peft_config",
    "peft_types",
    "read_peft",
    "virtual_tokens",
]

CONFIG = "adapter_config.json"
TENSORS = "adapter_model.safetensors"


def peft_types() -> dict[str, str]:
    """The kinds that PEFT has: name to PEFT's name."""
    found = {name: expert_kind(name).peft_type for name in kind_names()}
    return {name: peft_type for name, peft_type in found.items() if peft_type is not None}


def in_layer_order(sites: Sequence[str]) -> list[str]:
    """Sorted with layer 2 before layer 10."""
    return sorted(
        sites,
        key=lambda site: [
            (int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", site)
        ],
    )


def at_sites(adapter: PeftAdapter, sites: Sequence[str]) -> dict[str, Tensors]:
    """Site to tensors.

    Args:
        sites: all sites that the backbone has for the kind; not read for a LoRA, which names its
            own.

    Raises:
        ExpertError: the backbone has another number of layers.
    """
    names = adapter.sites or in_layer_order(sites)
    if len(names) != len(adapter.layers):
        raise ExpertError(
            f"PEFT {peft_types()[adapter.kind]} adapter: has {len(adapter.layers)} layers, "
            f"the backbone has {len(names)}; it belongs to another backbone"
        )
    return dict(zip(names, adapter.layers, strict=True))


def peft_config(
    kind: str, sites: Sites, *, backbone: str, scaling: float = 1.0, rank_stabilized: bool = False
) -> dict[str, Any]:
    """`adapter_config.json`."""
    found = expert_kind(kind)
    return {
        "peft_type": found.peft_type,
        "task_type": "FEATURE_EXTRACTION",
        "base_model_name_or_path": backbone,
        "inference_mode": True,
        **found.peft_config(sites, scaling=scaling, rank_stabilized=rank_stabilized),
    }


def read_peft(folder: Path) -> PeftAdapter:
    """A folder that pidep wrote, or that PEFT wrote in the same way.

    Raises:
        ExpertError: it is damaged, or has a setting that pidep cannot honour; the message names it.
    """
    return peft_adapter(folder, read_json(folder / CONFIG), read_tensors(folder / TENSORS))


def peft_adapter(
    folder: Path, config: Mapping[str, Any], tensors: Mapping[str, npt.NDArray[Any]]
) -> PeftAdapter:
    """The adapter of a config and tensors that were read in `folder`; raises as `read_peft`."""
    where = folder / CONFIG
    types = peft_types()
    kind = next((name for name, found in types.items() if found == config.get("peft_type")), None)
    if kind is None:
        raise ExpertError(
            f"{where}: peft_type is {config.get('peft_type')!r}, "
            f"expected {' or '.join(map(repr, types.values()))}"
        )
    found = expert_kind(kind)
    require_harmless(where, config, found.peft_fields)
    return found.read_peft(folder, config, tensors)


def joined(parts: Sequence[Array]) -> dict[str, Array]:
    """`prompt_embeddings`: the parts side by side."""
    return {"prompt_embeddings": np.ascontiguousarray(np.concatenate(parts, axis=1))}


def virtual_tokens(
    folder: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, npt.NDArray[Any]],
    *,
    layers: Any,
    parts: int,
) -> list[Array]:
    """`prompt_embeddings` cut into `layers` × `parts` arrays of equal width.

    Raises:
        ExpertError: the config's numbers or the tensor do not fit together.
    """
    where, path = folder / CONFIG, folder / TENSORS
    array = tensors.get("prompt_embeddings")
    # A second tensor, such as a projection's, would change the answers if it were ignored.
    if array is None or len(tensors) != 1:
        raise ExpertError(
            f"{path}: expected one tensor 'prompt_embeddings', "
            f"found {', '.join(sorted(tensors)) or 'none'}"
        )
    tokens = config.get("num_virtual_tokens")
    if not isinstance(tokens, int) or tokens < 1 or not isinstance(layers, int) or layers < 1:
        raise ExpertError(
            f"{where}: expected num_virtual_tokens >= 1 and num_layers >= 1, "
            f"found {tokens!r} and {config.get('num_layers')!r}"
        )
    columns = layers * parts
    # PEFT keeps a second half for the decoder of an encoder-decoder, which it never uses
    submodules = config.get("num_transformer_submodules") or 1
    fits = array.ndim == 2 and len(array) == tokens * submodules and not array.shape[1] % columns
    if array.dtype.kind != "f" or not fits:
        raise ExpertError(
            f"{path}: prompt_embeddings is {array.dtype} {array.shape}, "
            f"expected floats of {tokens} tokens and {columns} equal parts"
        )
    return np.split(finite(array[:tokens], "prompt_embeddings", path), columns, axis=1)


def finite(array: npt.NDArray[Any], name: str, path: Path) -> Array:
    """The array as fp32.

    Raises:
        ExpertError: it holds NaN or Inf.
    """
    cast = as_finite_fp32(array)
    if cast is None:
        raise ExpertError(
            f"{path}: {name} holds NaN or Inf; train the expert again with a smaller learning rate"
        )
    return np.ascontiguousarray(cast)
