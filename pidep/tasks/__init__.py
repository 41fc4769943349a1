"""Tasks: what to learn, from which rows, held to which metric. No torch.

May import `pidep.backbones.images` (no torch there, either), `pidep.atomic_write` and `pidep.errors`.
"""

__all__: list[str] = []
