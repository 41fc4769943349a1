"""Launch settings of every kernel: a small shipped table, and what `tune` found on this machine.

Nothing is timed unless `tune` runs (`make tune-launches`, `make gpu-check`), so the first training
step does not pay for a search.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch

from pidep.files.bounded_read import parse_json
from pidep.files.cache_folder import cache_folder

__all__ = [
    "CHOICES",
    "DEFAULTS",
    "Launch",
    "Settings",
    "cache_file",
    "choices",
    "launch",
    "recording",
    "settings_for",
    "tune",
    "tuned_settings",
    "using",
]

Settings = dict[str, int]
"""`num_warps`, `num_stages`, and the kernel's block sizes."""

DEFAULTS: Mapping[str, Settings] = {
    "interpolate_forward": {"CHUNK": 4, "num_warps": 4},
    "interpolate_backward": {"CHUNK": 4, "num_warps": 4},
    "interpolate_logits": {"num_warps": 4},
    "lora_fold": {"num_warps": 8},
    "low_rank": {"BLOCK_C": 64, "num_warps": 8, "num_stages": 3},
    "low_rank float32": {"BLOCK_C": 16, "num_warps": 8, "num_stages": 3},
    "low_rank_outer": {"BLOCK_M": 64, "num_warps": 8, "num_stages": 3},
    "low_rank_outer float32": {"BLOCK_M": 32, "num_warps": 8, "num_stages": 3},
}
"""By kernel, or by kernel and dtype. Three TF32 products of one tile need three times the
registers, so fp32 has settings of its own.
"""
CHOICES: Mapping[str, Mapping[str, Sequence[int]]] = {
    "interpolate_forward": {"CHUNK": (1, 2, 4, 8), "num_warps": (2, 4, 8)},
    "interpolate_backward": {"CHUNK": (1, 2, 4, 8), "num_warps": (2, 4, 8)},
    "lora_fold": {"num_warps": (4, 8)},
    "low_rank": {"BLOCK_C": (16, 32, 64, 128), "num_warps": (4, 8), "num_stages": (2, 3)},
    "low_rank_outer": {"BLOCK_M": (32, 64), "num_warps": (4, 8), "num_stages": (2, 3)},
}
"""The settings that `tune` tries. A kernel that is absent has no choice."""
_OVERRIDE: dict[str, Settings] = {}


class Launch(NamedTuple):
    """One launch, as `recording` lists it."""

    name: str
    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    constants: dict[str, Any]
    """The kernel's constants, `num_warps` and `num_stages`."""


_RECORDS: list[list[Launch]] = []


def cache_file() -> Path:
    """`launch_table.json` in the cache folder: the tuned settings of this machine's GPUs."""
    return cache_folder() / "launch_table.json"


@cache
def tuned_settings() -> dict[str, Settings]:
    """Settings that `tune` found earlier. An unreadable file counts as none."""
    try:
        entries = parse_json(cache_file().read_bytes())
        return {
            key: {name: int(value) for name, value in settings.items()}
            for key, settings in entries.items()
        }
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


@cache
def _device() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def _key(kernel: str, dtype: torch.dtype) -> str:
    return f"{_device()} | {kernel} | {_name(dtype)}"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def settings_for(kernel: str, dtype: torch.dtype) -> Settings:
    """The launch settings of a kernel on this machine's GPU."""
    # A cache file of another version may name settings that this version does not have.
    options = CHOICES.get(kernel, {})
    found = {
        name: value
        for name, value in tuned_settings().get(_key(kernel, dtype), {}).items()
        if value in options.get(name, ())
    }
    return {
        **DEFAULTS[kernel],
        **DEFAULTS.get(f"{kernel} {_name(dtype)}", {}),
        **found,
        **_OVERRIDE.get(kernel, {}),
    }


def launch(
    name: str,
    kernel: Any,
    grid: tuple[int, ...],
    arguments: Sequence[Any],
    constants: Mapping[str, Any],
    dtype: torch.dtype,
) -> None:
    """Run a kernel with its settings."""
    # Fused multiply-adds are named explicitly: Triton 3.9 warns without it, and 3.10 changes the
    # default.
    constants = {"enable_fp_fusion": True, **constants, **settings_for(name, dtype)}
    if _RECORDS:
        _RECORDS[-1].append(Launch(name, kernel, grid, tuple(arguments), constants))
        return
    device = arguments[0].device
    # Triton launches on the current device, whatever device its tensors are on.
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        with torch.cuda.device(device):
            kernel[grid](*arguments, **constants)
    else:
        kernel[grid](*arguments, **constants)


@contextmanager
def recording() -> Iterator[list[Launch]]:
    """Inside, launches are listed instead of run; tensors may be on the meta device."""
    launches: list[Launch] = []
    _RECORDS.append(launches)
    try:
        yield launches
    finally:
        _RECORDS.pop()


def choices(kernel: str) -> Iterator[Settings]:
    """Every setting that `tune` tries."""
    options = CHOICES.get(kernel, {})
    for values in product(*options.values()):
        yield dict(zip(options, values, strict=True))


@contextmanager
def using(kernel: str, settings: Settings) -> Iterator[None]:
    """Inside, this kernel launches with these settings."""
    before = _OVERRIDE.get(kernel)
    _OVERRIDE[kernel] = settings
    try:
        yield
    finally:
        if before is None:
            _OVERRIDE.pop(kernel, None)
        else:
            _OVERRIDE[kernel] = before


def tune(
    kernel: str,
    dtype: torch.dtype,
    work: Callable[[], object],
    measure: Callable[[Callable[[], object]], float],
) -> Settings:
    """The fastest settings for `work`, which are also written to the cache file.

    Args:
        measure: milliseconds of one call.
    """
    times = {}
    for number, settings in enumerate(choices(kernel)):
        with using(kernel, settings):
            try:
                times[number] = measure(work)
            # Settings that need more registers or shared memory than the GPU has are skipped.
            except Exception as error:
                if "out of resource" not in str(error).lower():
                    raise
    best = list(choices(kernel))[min(times, key=lambda number: times[number])]
    _remember(_key(kernel, dtype), best)
    return best


def _remember(key: str, settings: Settings) -> None:
    path = cache_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    tuned_settings.cache_clear()  # Another process may have written the file meanwhile.
    whole = {**tuned_settings(), key: settings}
    # The name has the process's number, and the rename is atomic: two processes may tune at once.
    partial = path.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(json.dumps(whole, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(partial, path)
    tuned_settings.cache_clear()
