"""Tasks: inputs, answers, data and metric. No torch.

May import `pidep.inputs`, `pidep.plugins`, `pidep.files` and `pidep.errors`.
"""

__all__: list[str] = []
