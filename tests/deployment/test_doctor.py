"""`diagnose` finds what is installed here."""

from __future__ import annotations

import platform
from importlib.metadata import version

import onnxruntime

from pidep import __version__
from pidep.deployment import diagnose
from pidep.deployment.doctor import PACKAGES


def test_it_names_what_is_installed() -> None:
    found = diagnose()
    assert found.pidep["version"] == __version__
    assert found.pidep["python"].startswith(platform.python_version())
    assert list(found.packages) == list(PACKAGES)
    assert found.packages["torch"] == version("torch")
    assert found.packages["tensorrt"] in ("not installed", *_installed("tensorrt"))
    assert found.serving["onnxruntime"] == ", ".join(onnxruntime.get_available_providers())
    assert found.kernels["path"] in ("fused", "torch")


def _installed(package: str) -> list[str]:
    try:
        return [version(package)]
    except ModuleNotFoundError:
        return []


def test_its_json_has_the_same_findings() -> None:
    found = diagnose()
    assert found.to_json() == {
        "pidep": found.pidep,
        "packages": found.packages,
        "kernels": found.kernels,
        "serving": found.serving,
    }
