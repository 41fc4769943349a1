"""Triton Server loads this; everything happens in `pidep.serving`."""

from pidep.serving.triton_model import TritonPythonModel

__all__ = ["TritonPythonModel"]
