"""Compiled graphs of backbone and experts, each held to a parity gate, as model repository entries.

May import `pidep.runtime`, `pidep.tasks`, `pidep.backbones`, `pidep.adapters`, `pidep.experts`,
`pidep.artifacts` and what is below them; never `pidep.tuning`.
"""

from typing import TYPE_CHECKING

from pidep.lazy import lazy_names

if TYPE_CHECKING:
    from pidep.artifacts.parity import Parity
    from pidep.export.entries import Exported, export_merged
    from pidep.export.recipe import Quantisation, Recipe, Tolerance, load_recipe, recipes
    from pidep.export.source import Source, read_source

__all__ = [
    "Exported",
    "Parity",
    "Quantisation",
    "Recipe",
    "Source",
    "Tolerance",
    "export_merged",
    "load_recipe",
    "read_source",
    "recipes",
]

__getattr__ = lazy_names(
    __name__,
    {
        "Exported": "pidep.export.entries",
        "Parity": "pidep.artifacts.parity",
        "Quantisation": "pidep.export.recipe",
        "Recipe": "pidep.export.recipe",
        "Source": "pidep.export.source",
        "Tolerance": "pidep.export.recipe",
        "export_merged": "pidep.export.entries",
        "load_recipe": "pidep.export.recipe",
        "read_source": "pidep.export.source",
        "recipes": "pidep.export.recipe",
    },
)
