"""Predict: the diagonal Fisher embedding of a task, similarity between tasks, the task graph.

May import `pidep.backbones`, `pidep.experts`, `pidep.kernels`, `pidep.files.atomic_write` and `pidep.errors`.
"""

__all__: list[str] = []
