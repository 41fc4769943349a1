"""TensorRT and TensorRT for RTX: one API, two packages."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

from pidep.errors import UsageError

__all__ = ["TensorRT", "find_library"]

_INSTALL = {
    "tensorrt": "pip install tensorrt (its libraries come from NVIDIA's own index), or use the "
    "NVIDIA container, or a recipe of tensorrt-rtx",
    "tensorrt_rtx": "pip install 'pidep[tensorrt-rtx]'",
}


@dataclass(frozen=True)
class TensorRT:
    """An imported library."""

    name: Literal["tensorrt", "tensorrt_rtx"]
    api: Any
    """The module."""

    @property
    def version(self) -> str:
        """Such as `10.13.0` or `1.7.1`. An engine runs on the version that built it."""
        return str(self.api.__version__)

    def capability(self, text: str) -> Any:
        """The library's name of a compute capability such as `8.9`.

        Raises:
            UsageError: the library builds engines for this machine's GPU only, or not for this
                capability.
        """
        offered = getattr(self.api, "ComputeCapability", None)
        if offered is None:
            raise UsageError(
                f"compute_capabilities: {self.name} {self.version} builds engines for the GPU of "
                "this machine only; remove the key and export on the GPU that serves"
            )
        # Members of the enumeration are SM75, SM120; CURRENT and NONE are no capability.
        names = sorted(name for name in offered.__members__ if name.startswith("SM"))
        wanted = "SM" + text.replace(".", "")
        if wanted not in names:
            known = ", ".join(f"{name[2:-1]}.{name[-1]}" for name in names)
            raise UsageError(
                f"compute_capabilities: {self.name} {self.version} builds no engine for {text}; it "
                f"offers {known}"
            )
        return offered.__members__[wanted]


def find_library(name: Literal["tensorrt", "tensorrt_rtx"]) -> TensorRT:
    """The library that a recipe names.

    Raises:
        UsageError: it is not installed, or it cannot be loaded.
    """
    try:
        return TensorRT(name, import_module(name))
    except ImportError as error:
        raise UsageError(f"{name} not found: {_INSTALL[name]}") from error
    except (OSError, RuntimeError) as error:  # its shared libraries are missing or do not fit
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UsageError(f"{name}: cannot be loaded ({reason}): {_INSTALL[name]}") from error
