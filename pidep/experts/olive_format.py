"""Adapters as Microsoft Olive writes them: named LoRA factors, transposed. No torch.

    <module>.lora_A.weight   [in, r]
    <module>.lora_B.weight   [r, out], with the scaling

`olive convert-adapters` writes them as `.onnx_adapter`, `.safetensors`, `.npz` or `.pt`, and
`pidep convert` as `.onnx_adapter`. Such a file names no base and no rank: shapes are checked
against the backbone.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pidep.artifacts.names import GRAPH_LABELS
from pidep.errors import ExpertError
from pidep.experts.kind import PeftAdapter
from pidep.experts.peft_format import finite, peft_adapter
from pidep.files.bounded_read import MAX_TENSOR_BYTES, read_file
from pidep.files.tensor_file import read_tensors

__all__ = ["olive_adapter", "read_olive_tensors"]

_FACTOR = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_([AB])\.weight")
_DORA = "belongs to DoRA, which is no low-rank update; train a LoRA without it"
_REFUSED = {
    ".quant.": "is quantised to int4; convert the adapter without --quantize_int4",
    "dora_": _DORA,
    "lora_magnitude_vector": _DORA,
    "hada_w": "belongs to LoHa, which pidep does not have; train a LoRA",
    ".default.": "is of a graph of torch's exporter, which keeps the scaling elsewhere; convert "
    "the adapter with `olive convert-adapters`",
}
"""Parts of names, and why such a tensor is refused."""


def read_olive_tensors(path: Path) -> dict[str, npt.NDArray[Any]]:
    """The named tensors of a `.safetensors` or `.npz` file.

    Raises:
        ExpertError: a file of another ending, absent or damaged.
    """
    if path.suffix == ".safetensors":
        return read_tensors(path)
    if path.suffix != ".npz":
        # `.pt` is pickle, and reading pickle can run any code.
        raise ExpertError(
            f"{path}: expected .onnx_adapter, .safetensors or .npz; convert the adapter with "
            "`olive convert-adapters --adapter_format onnx_adapter`"
        )
    try:
        read_file(path, limit=MAX_TENSOR_BYTES)
        with np.load(path, allow_pickle=False) as found:
            return {name: found[name] for name in found.files}
    except FileNotFoundError as error:
        raise ExpertError(f"{path}: no such file; give the file that Olive wrote") from error
    except (ValueError, zipfile.BadZipFile, EOFError, KeyError, OSError) as error:
        raise ExpertError(f"{path}: truncated or damaged ({error}); convert it again") from error


def olive_adapter(path: Path, tensors: Mapping[str, npt.NDArray[Any]]) -> PeftAdapter:
    """The LoRA of named factors.

    Args:
        path: where they were read, for messages.

    Raises:
        ExpertError: a tensor is no factor of a LoRA, or is damaged; the message names it.
    """
    factors: dict[str, npt.NDArray[Any]] = {}
    ranks = set()
    for name, array in sorted(tensors.items()):
        if name == GRAPH_LABELS:
            continue  # pidep's own; the labels of the task take their place
        match = _FACTOR.fullmatch(name)
        refusal = next((why for part, why in _REFUSED.items() if part in name), None)
        if refusal or not match:
            why = refusal or "is no factor of a LoRA; expected <module>.lora_A.weight or lora_B"
            raise ExpertError(f"{path}: tensor {name!r} {why}")
        if array.dtype.kind != "f" or array.ndim != 2:
            raise ExpertError(
                f"{path}: {name} is {array.dtype} {array.shape}, expected a float matrix, [in, r] "
                "of A or [r, out] of B; convert the adapter again"
            )
        ranks.add(array.shape[1 if match[2] == "A" else 0])
        factors[f"base_model.model.{match[1]}.lora_{match[2]}.weight"] = np.ascontiguousarray(
            finite(array, name, path).T
        )
    if len(ranks) != 1:
        found = ", ".join(map(str, sorted(ranks))) or "no factors"
        raise ExpertError(
            f"{path}: expected factors of one rank, A [in, r] and B [r, out], found {found}; "
            "give a folder of PEFT for other ranks at some sites"
        )
    # The scaling is in B already.
    config = {"peft_type": "LORA", "r": next(iter(ranks)), "lora_alpha": next(iter(ranks))}
    return peft_adapter(path, config, factors)
