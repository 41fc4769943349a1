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
from pidep.export.sensitivity import Feeds, calibration_feeds
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
    feeds: Feeds | None = None,
) -> int | None:
    """Quantise a graph if the recipe says so; how many products are in int8, None elsewhere.

    Args:
        sources: their training rows are measured, where the recipe asks for a measurement.
        groups: a bank's expert inputs.
        feeds: the graph's inputs, where the rows alone do not say them.
    """
    if recipe.precision != "int8":
        return None
    _LOG.info("export: quantises the graph")
    how = recipe.quantisation or Quantisation()
    if feeds is None and how.max_product_error is not None:
        feeds = _feeds(backbone, sources, groups)
    return quantise(graph, how, feeds=feeds or ())


def _feeds(backbone: Backbone, sources: Sequence[Source], groups: Sequence[BankGroup]) -> Feeds:
    """The inputs of training rows. A text tower reads the labels, too: rows may be images alone."""
    found: list[Any] = []
    for source in sources:
        rows, most = list(source.calibration), source.expert.max_length
        if rows and backbone.towers:
            rows += source.expert.label_texts
        found += calibration_feeds(backbone, rows, groups, max_length=most)
    return found
