"""The precision of a recipe, brought into a graph that was exported in fp32."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pidep.backbones.backbone import Backbone
from pidep.experts.kind import BankGroup
from pidep.export.quantise import quantise
from pidep.export.recipe import Quantisation, Recipe
from pidep.export.sensitivity import calibration_feeds
from pidep.export.source import Source

__all__ = ["in_precision"]

_LOG = logging.getLogger(__name__)


def in_precision(
    graph: Path,
    recipe: Recipe,
    backbone: Backbone,
    *,
    sources: Sequence[Source],
    groups: Sequence[BankGroup] = (),
) -> int | None:
    """Quantise a graph if the recipe says so; how many products are in int8, None elsewhere.

    Args:
        sources: their training rows are measured, where the recipe asks for a measurement.
        groups: a bank's expert inputs.
    """
    if recipe.precision != "int8":
        return None
    _LOG.info("export: quantises the graph")
    how = recipe.quantisation or Quantisation()
    feeds: list[Any] = []
    for source in sources if how.max_product_error is not None else ():
        rows, most = source.calibration, source.expert.max_length
        feeds += calibration_feeds(backbone, rows, groups, max_length=most)
    return quantise(graph, how, feeds=feeds)
