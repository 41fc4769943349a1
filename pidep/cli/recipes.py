"""`pidep recipes`."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from pidep.cli import render
from pidep.cli.options import Json

if TYPE_CHECKING:
    from pidep.export.recipe import Recipe

__all__ = ["recipes"]


def recipes(json: Json = False) -> None:
    """List the ways in which `pidep export` compiles."""
    from pidep.export.recipe import recipes as shipped

    found = shipped()
    if json:
        render.as_json(
            [{**recipe.model_dump(mode="json"), "installed": _is_here(recipe)} for recipe in found]
        )
        return
    rows = [
        [
            *(one.name, one.runtime if _is_here(one) else f"{one.runtime} (not installed)"),
            *(one.precision, str(one.opset), one.summary),
        ]
        for one in found
    ]
    render.table("recipes", ["name", "runtime", "precision", "opset", "summary"], rows)


def _is_here(recipe: Recipe) -> bool:
    """Whether the package that compiles for the recipe's runtime is installed."""
    return find_spec(recipe.runtime) is not None
