"""Checkpoints of a training loop: safetensors and JSON, never pickle."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from pidep.errors import UsageError
from pidep.files.atomic_write import atomic_folder
from pidep.files.bounded_read import parse_json

__all__ = ["Progress", "load_checkpoint", "save_checkpoint"]


@dataclass
class Progress:
    """Position and history of a training loop."""

    step: int = 0
    best_step: int = 0
    best_loss: float = float("inf")
    stale: int = 0
    """Validations since the best one."""
    finished: bool = False
    history: list[dict[str, float]] = field(default_factory=list)


def save_checkpoint(
    folder: Path,
    *,
    fingerprint: str,
    progress: Progress,
    current: dict[str, Tensor],
    best: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
) -> None:
    """Write what a loop needs to go on as if it had never stopped."""
    tensors = {f"current.{name}": value.contiguous() for name, value in current.items()}
    # The current state to go on from, and the best one to return at the end.
    tensors |= {f"best.{name}": value.contiguous() for name, value in best.items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": value.contiguous() for key, value in state.items()}
    data = save(tensors)
    record = {
        "fingerprint": fingerprint,
        "sha256": hashlib.sha256(data).hexdigest(),
        **asdict(progress),
    }
    if record["best_loss"] == float("inf"):  # JSON has no infinity
        record["best_loss"] = None
    # A run that is killed here leaves the previous checkpoint.
    with atomic_folder(folder) as temporary:
        (temporary / "state.safetensors").write_bytes(data)
        (temporary / "progress.json").write_text(json.dumps(record))


def load_checkpoint(
    folder: Path, *, fingerprint: str, optimizer: torch.optim.Optimizer
) -> tuple[Progress, dict[str, Tensor], dict[str, Tensor]] | None:
    """Progress, current and best tensors; None without a checkpoint. The optimizer is restored.

    Raises:
        UsageError: the checkpoint has another fingerprint, or is damaged.
    """
    if not folder.is_dir():
        return None
    try:
        record = dict(parse_json((folder / "progress.json").read_bytes()))
        data = (folder / "state.safetensors").read_bytes()
        # A bit that changed on disk would load as a slightly different expert.
        if hashlib.sha256(data).hexdigest() != record.pop("sha256"):
            raise ValueError("state.safetensors does not match its SHA-256")
        state = load(data)
        made_for = record.pop("fingerprint")
        progress = Progress(**record)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise UsageError(
            f"{folder}: damaged checkpoint ({error}); delete the folder, or "
            "give `overwrite` without `resume`"
        ) from error
    # Going on with other rows or settings would give an expert that no single run gives.
    if made_for != fingerprint:
        raise UsageError(
            f"{folder}: the checkpoint is of another task, data or setting; "
            "choose another `out`, or give `overwrite` without `resume`"
        )
    if record["best_loss"] is None:
        progress.best_loss = float("inf")
    split: dict[str, dict[str, Tensor]] = {"current": {}, "best": {}}
    moments: dict[int, dict[str, Any]] = {}
    for name, value in state.items():
        area, rest = name.split(".", 1)
        if area == "optimizer":
            index, key = rest.split(".", 1)
            moments.setdefault(int(index), {})[key] = value
        else:
            split[area][rest] = value
    # Parameter groups stay those of the new optimizer; only the moments come from the file.
    restored = optimizer.state_dict()
    restored["state"] = moments
    optimizer.load_state_dict(restored)
    return progress, split["current"], split["best"]
