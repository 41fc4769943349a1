"""Adapters as people have them, for `pidep import`. No torch.

PEFT writes the same adapter in many ways: in a folder named like it, from a compiled model, with
another rank at each site, as pickle. What can be read is made plain; the rest is refused with the
way out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pidep.errors import ExpertError
from pidep.experts.kind import PeftAdapter
from pidep.experts.peft_format import CONFIG, TENSORS, peft_adapter
from pidep.files.bounded_read import read_json
from pidep.files.tensor_file import read_tensors

__all__ = ["read_foreign_peft"]

_PICKLE = "adapter_model.bin"
_WRAPPED = re.compile(r"^(?:_orig_mod\.|module\.)*base_model\.model\.(?:_orig_mod\.|module\.)*")
"""The beginning of a tensor's name, with what torch.compile and data parallelism add."""
_OF_TRAINING = re.compile(r"\.lora_velora_embed(\.|$)")
"""Tensors that only a gradient reads: how VeLoRA keeps activations."""
_FACTOR = re.compile(r"base_model\.model\.(.+)\.(lora_[AB])\.weight")


def read_foreign_peft(folder: Path) -> tuple[PeftAdapter, str]:
    """The adapter of a folder that PEFT wrote, and the name of its base.

    The name is empty where the config has none.

    Raises:
        ExpertError: there is no adapter that can be read; the message names the way out.
    """
    _require_adapter(folder)
    config = read_json(folder / CONFIG)
    tensors = {
        _plain(name): array
        for name, array in read_tensors(folder / TENSORS).items()
        if not _OF_TRAINING.search(name)
    }
    if config.get("peft_type") == "LORA":
        config, tensors = _of_one_rank(folder, config, tensors)
    base = config.get("base_model_name_or_path")
    return peft_adapter(folder, config, tensors), base if isinstance(base, str) else ""


def _require_adapter(folder: Path) -> None:
    if not folder.is_dir():
        raise ExpertError(f"{folder}: no such folder; give the folder that PEFT wrote")
    if not (folder / CONFIG).is_file():
        inside = sorted(path.parent.name for path in folder.glob(f"*/{CONFIG}"))
        if inside:
            names = ", ".join(inside)
            raise ExpertError(
                f"{folder}: no {CONFIG} here, and one in {names}; give {folder / inside[0]}"
            )
        raise ExpertError(f"{folder}: no {CONFIG}; give the folder that PEFT wrote")
    if not (folder / TENSORS).is_file() and (folder / _PICKLE).is_file():
        # Reading pickle can run any code.
        raise ExpertError(
            f"{folder / _PICKLE}: is pickle, which pidep does not read; load the adapter with "
            "PeftModel.from_pretrained and call save_pretrained, which writes safetensors"
        )


def _plain(name: str) -> str:
    """A tensor's name without the wrappers of the model it was trained in."""
    return _WRAPPED.sub("base_model.model.", name).replace("._orig_mod.", ".")


def _of_one_rank(
    folder: Path, config: dict[str, Any], tensors: dict[str, npt.NDArray[Any]]
) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
    """A LoRA of other ranks or alphas at some sites, as EVA makes it, as one of a single rank.

    Smaller factors get rows and columns of zeros, and each site's scaling goes into its B. The
    updates stay the same.
    """
    ranks, alphas = (config.get(key) or {} for key in ("rank_pattern", "alpha_pattern"))
    if not ranks and not alphas:
        return config, tensors
    factors = {name: match for name in tensors if (match := _FACTOR.fullmatch(name))}
    if any(array.ndim != 2 for array in tensors.values()) or not factors:
        return config, tensors  # refused by the reader that comes next
    try:
        sites = {match[1] for match in factors.values()}
        scaling = {site: _scaling(config, ranks, alphas, site) for site in sites}
    except (TypeError, ValueError, re.error, ZeroDivisionError) as error:
        raise ExpertError(
            f"{folder / CONFIG}: rank_pattern and alpha_pattern: expected numbers by site "
            f"({error}); save the adapter again"
        ) from error
    largest = max(min(array.shape) for array in tensors.values())
    made = {}
    for name, match in factors.items():
        axis, factor = (0, 1.0) if match[2] == "lora_A" else (1, scaling[match[1]])
        missing = [(0, 0), (0, 0)]
        missing[axis] = (0, max(0, largest - tensors[name].shape[axis]))
        made[name] = np.pad(tensors[name].astype(np.float32) * np.float32(factor), missing)
    plain = {"rank_pattern": {}, "alpha_pattern": {}, "use_rslora": False}
    return config | plain | {"r": largest, "lora_alpha": largest}, tensors | made


def _scaling(
    config: Mapping[str, Any], ranks: Mapping[str, Any], alphas: Mapping[str, Any], site: str
) -> float:
    """s of one site, by PEFT's rule for patterns."""

    def of_site(pattern: Mapping[str, Any], otherwise: Any) -> float:
        return float(
            next(
                (value for key, value in pattern.items() if re.match(rf"(.*\.)?({key})$", site)),
                otherwise,
            )
        )

    rank, alpha = of_site(ranks, config.get("r")), of_site(alphas, config.get("lora_alpha"))
    return alpha / (rank**0.5 if config.get("use_rslora") else rank)
