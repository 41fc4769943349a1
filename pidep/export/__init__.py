"""Export: backbone plus expert as compiled graphs, each held to a parity gate, and Triton Server repository entries.

May import everything below the three wings, never `pidep.tuning` or `pidep.serving`.
"""

__all__: list[str] = []
