"""Numeric kernels on plain tensors: `reference` in torch, `fused` in OpenAI Triton.

Each package checks its arguments and dispatches. May import torch, OpenAI Triton where it is
installed, and `pidep.files`.
"""

__all__: list[str] = []
