"""`pidep bundle`: the files that run an entry in NVIDIA's container, on a cluster, with alerts.

`files/` holds the templates, `template` fills them, `plan` decides what goes in, `write` writes.
"""

from typing import TYPE_CHECKING

from pidep.lazy import lazy_names

if TYPE_CHECKING:
    from pidep.deployment.bundle.write import Bundle, write_bundle

__all__ = ["Bundle", "write_bundle"]

__getattr__ = lazy_names(
    __name__,
    {
        "Bundle": "pidep.deployment.bundle.write",
        "write_bundle": "pidep.deployment.bundle.write",
    },
)
