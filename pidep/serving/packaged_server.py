"""NVIDIA's Triton Server as the wheel `nvidia-pytriton` packages it."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path

from pidep.errors import ServingError
from pidep.serving.launch_options import ADMIN_KEY_VARIABLE

__all__ = ["find_wheel", "server_binary", "server_environment", "stage_backend"]


def find_wheel() -> Path:
    """The wheel's folder.

    Raises:
        ServingError: this is not Linux, or it is not installed.
    """
    if sys.platform != "linux":
        raise ServingError(
            f"Triton Server needs Linux, this is {sys.platform}; tune and export here, and serve "
            "the repository on Linux or in NVIDIA's container"
        )
    # Found without an import: pytriton's own code is not used, only the files of its wheel.
    spec = importlib.util.find_spec("pytriton")
    if spec is not None and spec.origin is not None:
        folder = Path(spec.origin).parent
        if server_binary(folder).is_file():
            return folder
    raise ServingError(
        "tritonserver not found: pip install 'pidep[serve]' (Linux x86_64), "
        "or serve the repository in NVIDIA's container"
    )


def server_binary(wheel: Path) -> Path:
    """The program."""
    return wheel / "tritonserver" / "bin" / "tritonserver"


def stage_backend(wheel: Path, folder: Path) -> Path:
    """A backend folder with the stub of the running Python, made inside `folder`.

    The wheel has one stub for each version of Python, and Triton Server takes the one beside its
    backend, whichever version that is.

    Raises:
        ServingError: the wheel has no stub for this Python.
    """
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stubs = wheel / "tritonserver" / "python_backend_stubs"
    stub = stubs / version / "triton_python_backend_stub"
    if not stub.is_file():
        raise ServingError(
            f"the wheel's Triton Server has no stub for Python {version}; use Python 3.10 to 3.13"
        )
    target = folder / "backends" / "python"
    target.mkdir(parents=True)
    for name in ("libtriton_python.so", "triton_python_backend_utils.py"):
        # Links, because the libraries are large; the stub is copied, since it must lie beside them.
        os.symlink(wheel / "tritonserver" / "backends" / "python" / name, target / name)
    shutil.copy2(stub, target / stub.name)
    return folder / "backends"


def server_environment(wheel: Path) -> dict[str, str]:
    """Environment variables of the server's process."""
    # The server's shared libraries lie there, and only LD_LIBRARY_PATH leads to them.
    libraries = wheel.parent / "nvidia_pytriton.libs"
    more = os.environ.get("LD_LIBRARY_PATH", "")
    # Models run code of their own, and need no key.
    own = {name: value for name, value in os.environ.items() if name != ADMIN_KEY_VARIABLE}
    return {
        **own,
        "LD_LIBRARY_PATH": f"{libraries}:{more}".rstrip(":"),
        # The stub ignores PYTHONPATH: its packages are those of the first python3 on the PATH.
        "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}",
    }
