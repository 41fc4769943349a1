"""Serving: the expert store, the model inside Triton Server that follows it, server, clients, swap.

`triton_model`, `watcher`, `routed_bank` and `store` run inside Triton Server. `routes` changes what
names mean, `manage` confirms it on servers, `auto_rollout` watches canaries. May import
`pidep.runtime`, `pidep.experts`, `pidep.artifacts`, `pidep.inputs`, `pidep.files` and
`pidep.errors`; never torch, transformers, `pidep.export` or `pidep.tuning`.
"""

from typing import TYPE_CHECKING

from pidep.lazy import lazy_names

if TYPE_CHECKING:
    from pidep.serving.addresses import Ports, free_ports
    from pidep.serving.async_client import AsyncClient
    from pidep.serving.client import Client
    from pidep.serving.request import Request, Result
    from pidep.serving.server import TritonServer
    from pidep.serving.store import ExpertStore
    from pidep.serving.swap import Swapped, swap_expert

__all__ = [
    "AsyncClient",
    "Client",
    "ExpertStore",
    "Ports",
    "Request",
    "Result",
    "Swapped",
    "TritonServer",
    "free_ports",
    "swap_expert",
]

__getattr__ = lazy_names(
    __name__,
    {
        "AsyncClient": "pidep.serving.async_client",
        "Client": "pidep.serving.client",
        "ExpertStore": "pidep.serving.store",
        "Ports": "pidep.serving.addresses",
        "Request": "pidep.serving.request",
        "Result": "pidep.serving.request",
        "Swapped": "pidep.serving.swap",
        "TritonServer": "pidep.serving.server",
        "free_ports": "pidep.serving.addresses",
        "swap_expert": "pidep.serving.swap",
    },
)
