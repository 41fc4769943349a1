"""The result format of every benchmark: machine, versions, command, raw runs and claims."""

from __future__ import annotations

import math
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypedDict

from pidep.errors import PidepError
from pidep.files.atomic_write import write_json

__all__ = ["RESULTS", "Claim", "check_result", "machine", "versions", "write_result"]

RESULTS = Path(__file__).parent / "results"
_PACKAGES = (
    "pidep",
    "torch",
    "transformers",
    "peft",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "onnxruntime-gpu",
    "safetensors",
    "tokenizers",
    "triton",
    "tritonclient",
    "nvidia-pytriton",
    "numpy",
    "scikit-learn",
    "tensorrt",
    "tensorrt-rtx-cu13",
)


class Claim(TypedDict):
    """One claim of the project, and whether this run supports it."""

    claim: str
    target: str | float
    measured: str | float
    met: bool


def machine() -> dict[str, Any]:
    """CPU, cores this process may use, memory in GiB, GPU or `None`."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpu": _gpu(),
        "system": platform.platform(),
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the installed packages that matter to a measurement."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def write_result(
    name: str, *, command: str, raw: Any, claims: Sequence[Claim], folder: Path = RESULTS
) -> Path:
    """Write `results/NAME.json`, whole or not at all.

    Raises:
        PidepError: a claim is incomplete, or a number is NaN or Inf.
    """
    path = folder / f"{name}.json"
    result = {
        "name": name,
        "recorded": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": command,
        "machine": machine(),
        "versions": versions(),
        "claims": [dict(claim) for claim in claims],
        "raw": raw,
    }
    check_result(path, result)
    try:
        write_json(path, result)
    except (TypeError, ValueError) as error:
        raise PidepError(f"{path}: the raw runs cannot be written as JSON ({error})") from error
    return path


def check_result(path: Path, result: Any) -> list[Claim]:
    """The claims of a result.

    Raises:
        PidepError: something is missing or of another type; the message names it.
    """
    if not isinstance(result, dict):
        raise PidepError(
            f"{path}: expected a JSON object, found {type(result).__name__}; run its benchmark "
            "again"
        )
    for key, kind in (("command", str), ("machine", dict), ("versions", dict), ("claims", list)):
        if not isinstance(result.get(key), kind) or not result[key]:
            raise PidepError(
                f"{path}: {key} is missing, empty or not a {kind.__name__}; run its benchmark again"
            )
    if "raw" not in result:
        raise PidepError(
            f"{path}: raw is missing: a claim needs its raw runs; run its benchmark again"
        )
    for number, claim in enumerate(result["claims"]):
        _check_claim(f"{path}: claims[{number}]", claim)
    claims: list[Claim] = result["claims"]
    return claims


def _check_claim(where: str, claim: Any) -> None:
    if not isinstance(claim, dict) or set(claim) != set(Claim.__annotations__):
        found = sorted(claim) if isinstance(claim, dict) else type(claim).__name__
        raise PidepError(f"{where}: expected exactly claim, target, measured, met; found {found}")
    if not isinstance(claim["claim"], str) or not isinstance(claim["met"], bool):
        raise PidepError(
            f"{where}: claim must be text and met true or false; found {claim['claim']!r} and "
            f"{claim['met']!r}"
        )
    for key in ("target", "measured"):
        value = claim[key]
        if (
            isinstance(value, bool)
            or not isinstance(value, str | int | float)
            or (isinstance(value, float) and not math.isfinite(value))
        ):
            raise PidepError(f"{where}: {key} must be text or a finite number; found {value!r}")


def _cpu_model() -> str:
    """The CPU's marketing name where Linux tells it, else the platform's name."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _gpu() -> str | None:
    """Name and driver of the first GPU; None where there is none."""
    if shutil.which("nvidia-smi") is None:
        return None
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)
    return (
        done.stdout.strip().splitlines()[0]
        if done.returncode == 0 and done.stdout.strip()
        else None
    )
