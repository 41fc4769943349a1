"""Numeric kernels on plain tensors: `reference` is torch; fused OpenAI Triton versions sit beside it.

May import torch (and OpenAI Triton where there is one), nothing else of pidep.
"""

__all__: list[str] = []
