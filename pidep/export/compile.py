"""The graphs of an entry, in the precision of its recipe."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pidep.adapters.fold import folded_or_attached
from pidep.artifacts.names import DECODER_GRAPH, ENCODER_GRAPH, GRAPH
from pidep.artifacts.sequence import SequenceRecord
from pidep.backbones.backbone import Backbone
from pidep.backbones.tower import TowerName
from pidep.errors import ExpertError, PidepError, UsageError
from pidep.experts.bank import BankGroup
from pidep.experts.kind import bank_sites
from pidep.export.bound import require_inputs
from pidep.export.folded import require_folded
from pidep.export.graph import export_bank_graph, export_merged_graph
from pidep.export.graph_cache import cached_bank_graph
from pidep.export.precision import in_precision
from pidep.export.recipe import Recipe
from pidep.export.sensitivity import Feeds
from pidep.export.sequence_feeds import sequence_feeds
from pidep.export.sequence_graph import export_sequence_bank, export_sequence_merged
from pidep.export.source import Source
from pidep.export.towers import (
    expert_of_tower,
    graphs_of,
    groups_of_tower,
    require_towers_able,
    towers_record,
    write_label_vectors,
)
from pidep.export.vision import export_vision
from pidep.files.digest import file_digest

__all__ = ["compile_bank", "compile_merged"]

_LOG = logging.getLogger(__name__)


def compile_merged(
    backbone: Backbone, source: Source, version: Path, recipe: Recipe
) -> dict[str, Any]:
    """Write the graphs of a merged model into a version folder; what its record says about them.

    Raises:
        PidepError: the exporter cannot translate the backbone, or the recipe forbids an operator.
        ParityError: the graph does not hold the expert, or the vision graph differs from PyTorch.
    """
    if not backbone.embeds:
        _LOG.info("export: compiles the graphs")
        _require_sequences(recipe)
        expert, opset = source.expert, recipe.opset
        export_sequence_merged(backbone, expert, version, opset=opset, **_how(recipe))
        # The expert may act where images are seen, too.
        with folded_or_attached(
            backbone.model, expert.sites, kind=expert.kind, scaling=expert.scaling
        ):
            return _sequence_facts(backbone, version, recipe, sources=[source])
    require_towers_able(backbone, recipe)
    quantised = []
    for tower, name in graphs_of(backbone):
        _LOG.info("export: compiles the graph%s", _of(tower))
        graph, how = version / name, {**_how(recipe), "tower": tower}
        export_merged_graph(backbone, source.expert, graph, opset=recipe.opset, **how)
        own = expert_of_tower(backbone, source.expert, tower)
        require_folded(backbone, own, graph, half=how["half"])
        quantised.append(in_precision(graph, recipe, backbone, sources=[source]))
    write_label_vectors(backbone, source.expert, version)
    return _facts(backbone, version, recipe, quantised)


def compile_bank(
    backbone: Backbone,
    groups: Sequence[BankGroup],
    sources: Sequence[Source],
    version: Path,
    recipe: Recipe,
) -> dict[str, Any]:
    """Write the graphs of a bank, as `compile_merged`.

    Args:
        groups: the graph inputs that hold experts.
        sources: their training rows are measured, where the recipe asks for a measurement.

    Raises:
        ParityError: an input of the graph is read by no node, or as `compile_merged`.
    """
    opset, how = recipe.opset, _how(recipe)
    if not backbone.embeds:
        _LOG.info("export: compiles the graphs")
        _require_sequences(recipe)
        _require_sightless(backbone, groups)
        for name in (ENCODER_GRAPH, DECODER_GRAPH):
            graph = version / name
            make = partial(export_sequence_bank, backbone, groups, graph, opset=opset, **how)
            cached_bank_graph(backbone, groups, graph, make, opset=opset, **how)
        return _sequence_facts(backbone, version, recipe, sources=sources, groups=groups)
    require_towers_able(backbone, recipe)
    quantised = []
    for tower, name in graphs_of(backbone):
        _LOG.info("export: compiles the graph%s", _of(tower))
        own = groups_of_tower(backbone, groups, tower)
        graph, opset, how = version / name, recipe.opset, {**_how(recipe), "tower": tower}
        make = partial(export_bank_graph, backbone, own, graph, opset=opset, **how)
        cached_bank_graph(backbone, own, graph, make, opset=opset, **how)
        if own:  # no expert may act in a tower
            require_inputs(graph, own)
        quantised.append(in_precision(graph, recipe, backbone, sources=sources, groups=own))
    return _facts(backbone, version, recipe, quantised)


def _of(tower: TowerName | None) -> str:
    return "" if tower is None else f" of the {tower} tower"


def _how(recipe: Recipe) -> dict[str, Any]:
    return {"half": recipe.precision == "fp16", "beside": recipe.weights == "beside"}


def _facts(
    backbone: Backbone, version: Path, recipe: Recipe, quantised: Sequence[int | None]
) -> dict[str, Any]:
    """What every record says about its graphs; writes the vision graph where there is one.

    Args:
        quantised: products in int8 of each graph.
    """
    for _, name in graphs_of(backbone):
        _require_operators(version / name, recipe)
    counts = [count for count in quantised if count is not None]
    return {
        "backbone_digest": backbone.digest,
        "graph_digest": file_digest(version / GRAPH),
        "quantised_products": sum(counts) if counts else None,
        "vision": export_vision(backbone, version, recipe),
        "towers": towers_record(backbone, version),
    }


def _require_sequences(recipe: Recipe) -> None:
    """Refuse a recipe that no encoder-decoder has.

    Raises:
        UsageError: it is of another runtime.
    """
    if recipe.runtime != "onnxruntime":
        raise UsageError(
            f"recipe {recipe.name!r}: is for {recipe.runtime}, and encoder-decoders are exported "
            "for onnxruntime; use `recipe=onnx-cpu`"
        )


def _require_sightless(backbone: Backbone, groups: Sequence[BankGroup]) -> None:
    """Refuse experts that act where images are seen: all of a bank's rows share that graph.

    Raises:
        ExpertError: names the first such site.
    """
    sight = () if backbone.halves is None else backbone.halves.sight
    for site in bank_sites(groups):
        if site.startswith(sight or ("\0",)):
            raise ExpertError(
                f"site {site!r}: is in the vision tower, which all experts of a bank share; choose "
                "other `sites` or export the expert with `form=merged`"
            )


def _sequence_facts(
    backbone: Backbone,
    version: Path,
    recipe: Recipe,
    *,
    sources: Sequence[Source],
    groups: Sequence[BankGroup] = (),
) -> dict[str, Any]:
    """As `_facts`, of the two graphs of an encoder-decoder; brings them into the recipe's
    precision.
    """
    vision = export_vision(backbone, version, recipe)
    feeds: Mapping[str, Feeds] = {}
    if recipe.quantisation is not None and recipe.quantisation.max_product_error is not None:
        # Before any graph is in int8: the graphs answer the rows that are measured.
        plain = _sequence_record(backbone, version)
        feeds = sequence_feeds(version, plain, vision, sources, groups)
    counts = []
    for name in (ENCODER_GRAPH, DECODER_GRAPH):
        counts.append(
            in_precision(version / name, recipe, backbone, sources=(), feeds=feeds.get(name))
        )
        _require_operators(version / name, recipe)
    encoder, decoder = counts
    sequence = _sequence_record(backbone, version, encoder=encoder, decoder=decoder)
    return {
        "backbone_digest": backbone.digest,
        "graph_digest": sequence.decoder_digest,
        "quantised_products": None if encoder is None or decoder is None else encoder + decoder,
        "sequence": sequence,
        "vision": vision,
    }


def _sequence_record(
    backbone: Backbone, version: Path, *, encoder: int | None = None, decoder: int | None = None
) -> SequenceRecord:
    """The record of the two graphs that are there.

    Args:
        encoder: products in int8 of the encoder's graph.
        decoder: those of the decoder's.
    """
    halves = backbone.halves
    assert halves is not None
    special, words = halves.special, halves.task_words
    return SequenceRecord(
        encoder_digest=file_digest(version / ENCODER_GRAPH),
        decoder_digest=file_digest(version / DECODER_GRAPH),
        encoder_quantised_products=encoder,
        decoder_quantised_products=decoder,
        start=special.start,
        end=special.end,
        pad=special.pad,
        frame=tuple(sorted(special.frame)),
        positions=halves.positions,
        image_token=halves.image_token,
        task_words=None if words is None else dict(words),
    )


def _require_operators(graph: Path, recipe: Recipe) -> None:
    """Refuse operators that the recipe does not permit.

    Raises:
        PidepError: the message names the first.
    """
    if recipe.operators == "any":
        return
    import onnx

    # Without the weights: only the nodes are looked at.
    for node in onnx.load(graph, load_external_data=False).graph.node:
        if node.domain not in ("", "ai.onnx"):
            raise PidepError(
                f"recipe {recipe.name!r}: node {node.name!r} is {node.domain}.{node.op_type}, "
                "which is no standard operator; use a recipe of `operators: any`"
            )
