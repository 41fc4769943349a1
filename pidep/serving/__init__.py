"""Serving: the bank that runs inside Triton Server, the expert store it watches, the server, the client, the swap.

`bank`, `store` and `triton_model` run inside Triton Server and never import torch or transformers.
May import everything below the three wings, never `pidep.tuning` or `pidep.export`.
"""

__all__: list[str] = []
