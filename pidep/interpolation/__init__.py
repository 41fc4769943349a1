"""Interpolate: turning a mixture of experts into one expert, or an expert into the backbone's weights.

May import `pidep.backbones`, `pidep.experts`, `pidep.kernels` and `pidep.errors`.
"""

__all__: list[str] = []
