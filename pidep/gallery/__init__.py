"""What runs without a hub: packaged tasks, icons, and the backbones `minilm` and `pidep-mini`.

Nothing imports this room by name: `pidep.plugins` finds its tasks and backbones. May import every
room below.
"""

__all__: list[str] = []
