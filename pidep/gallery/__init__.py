"""What runs without a hub: packaged tasks, icons, and the backbones `minilm` and `pidep-mini`.

Nothing imports this room by name: `pidep.plugins` finds its tasks and backbones. May import every
room below.
"""

from typing import TYPE_CHECKING

from pidep.lazy import lazy_names

if TYPE_CHECKING:
    from pidep.gallery.backbones import load_mini, load_minilm
    from pidep.gallery.tasks import TASKS

__all__ = [
    "TASKS",
    "load_mini",
    "load_minilm",
]

__getattr__ = lazy_names(
    __name__,
    {
        "TASKS": "pidep.gallery.tasks",
        "load_mini": "pidep.gallery.backbones",
        "load_minilm": "pidep.gallery.backbones",
    },
)
