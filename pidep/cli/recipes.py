"""`pidep recipes`."""

from __future__ import annotations

from pidep.cli import render
from pidep.cli.options import Json

__all__ = ["recipes"]


def recipes(json: Json = False) -> None:
    """List the ways in which `pidep export` compiles."""
    from pidep.export.recipe import recipes as shipped

    found = shipped()
    if json:
        render.as_json([recipe.model_dump(mode="json") for recipe in found])
        return
    rows = [[one.name, one.runtime, one.precision, str(one.opset), one.summary] for one in found]
    render.table("recipes", ["name", "runtime", "precision", "opset", "summary"], rows)
