"""Tasks: what to learn, from which rows, held to which metric. No torch.

May import `pidep.inputs.images` (no torch there, either), `pidep.files.atomic_write` and `pidep.errors`.
"""

__all__: list[str] = []
