"""What an export of two towers has of its own: a graph and expert inputs for each tower."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from pidep.adapters.bank import bank_groups
from pidep.adapters.mixture import attached, mixture_of
from pidep.artifacts.names import GRAPH, IMAGE_GRAPH, LABEL_VECTORS
from pidep.artifacts.towers import TowersRecord
from pidep.backbones.backbone import Backbone
from pidep.backbones.tower import TowerName
from pidep.errors import UsageError
from pidep.experts.bank import BankGroup
from pidep.experts.folder import Expert
from pidep.export.parity import BeyondTolerance
from pidep.export.recipe import Recipe
from pidep.export.source import Source
from pidep.files.digest import file_digest
from pidep.files.tensor_file import tensor_bytes
from pidep.inputs.row import Row
from pidep.runtime.answer import Answer, label_logits
from pidep.runtime.towers import tower_rows

__all__ = [
    "check_ways",
    "expert_of_tower",
    "graph_groups",
    "graphs_of",
    "groups_of_tower",
    "require_towers_able",
    "towers_record",
    "write_label_vectors",
]

_TEXT = "a row of two towers"


def graphs_of(backbone: Backbone) -> list[tuple[TowerName | None, str]]:
    """Each graph of an entry: the tower, None for a backbone of one graph, and its file."""
    if not backbone.towers:
        return [(None, GRAPH)]
    return [("text", GRAPH), ("image", IMAGE_GRAPH)]


def graph_groups(
    backbone: Backbone, sites: Sequence[str], *, kind: str, size: int
) -> list[BankGroup]:
    """As `bank_groups`. No input holds factors of both towers: each has a graph of its own."""
    if not backbone.towers:
        return bank_groups(backbone.model, sites, kind=kind, size=size)
    found = []
    for tower in backbone.towers:
        own = [site for site in sites if site.startswith(tower.prefixes)]
        for group in bank_groups(backbone.model, own, kind=kind, size=size) if own else ():
            found.append(replace(group, input=f"{tower.name}_{group.input}"))
    return found


def groups_of_tower(
    backbone: Backbone, groups: Sequence[BankGroup], name: TowerName | None
) -> list[BankGroup]:
    """The groups of a tower's sites; all of them for a backbone of one graph."""
    return [group for group in groups if _within(backbone, group.sites[0], name)]


def expert_of_tower(backbone: Backbone, expert: Expert, name: TowerName | None) -> Expert:
    """The expert at the sites of a tower alone; the expert itself for a backbone of one graph."""
    own = {site: one for site, one in expert.sites.items() if _within(backbone, site, name)}
    return replace(expert, sites=own)


def _within(backbone: Backbone, site: str, name: TowerName | None) -> bool:
    return name is None or any(
        one.name == name and site.startswith(one.prefixes) for one in backbone.towers
    )


def require_towers_able(backbone: Backbone, recipe: Recipe, *, platform: str = "python") -> None:
    """Refuse, before minutes of work, what only a backbone of one graph can have.

    Raises:
        UsageError: a backend of Triton Server or a runtime that takes one graph.
    """
    if not backbone.towers:
        return
    if platform != "python":
        raise UsageError(
            f"`platform={platform}`: Triton Server's backend runs one graph, and backbone "
            f"{backbone.name!r} has two towers; use `platform=python`"
        )
    if recipe.runtime != "onnxruntime":
        raise UsageError(
            f"recipe {recipe.name!r}: compiles one graph, and backbone {backbone.name!r} has two "
            "towers; use a recipe of ONNX Runtime"
        )


def towers_record(backbone: Backbone, version: Path) -> TowersRecord | None:
    """What the record says about both towers; None for a backbone of one graph."""
    if not backbone.towers:
        return None
    assert backbone.preprocess is not None
    return TowersRecord(
        image_graph_digest=file_digest(version / IMAGE_GRAPH),
        preprocess=backbone.preprocess,
        preprocess_digest=backbone.preprocess.digest,
        padded_length=backbone.towers[0].padded_length,
    )


def write_label_vectors(backbone: Backbone, expert: Expert, version: Path) -> None:
    """Write what a merged model of two towers makes logits of its embeddings with: `labels` [C, D]
    and `bias` [C], fp32.
    """
    if backbone.towers:
        # The logit scale is folded in, as in a merged graph.
        labels = (expert.label_embeddings * expert.logit_scale).astype(np.float32)
        bias = np.array(expert.label_bias or [0.0] * len(labels), np.float32)
        (version / LABEL_VECTORS).write_bytes(tensor_bytes({"labels": labels, "bias": bias}))


def check_ways(
    backbone: Backbone,
    source: Source,
    recipe: Recipe,
    answer: Callable[[Sequence[Row]], Sequence[Answer]],
) -> None:
    """Compare every way through two towers with PyTorch: a text, an image, and both.

    The rows of a task may be texts alone, and yet a client may ask about an image.

    Args:
        answer: rows to the answers of the entry under test.

    Raises:
        BeyondTolerance: a logit is beyond the recipe's `max_abs`.
    """
    if not backbone.towers:
        return
    expert, rows = source.expert, tower_rows(_TEXT)
    with attached(backbone.model, mixture_of(source.served)):
        expected = backbone.encode(rows, max_length=expert.max_length).numpy()
    for what, row, found in zip(
        ("a text", "an image", "a text with an image"), expected, answer(rows), strict=True
    ):
        if expert.labels:
            error = np.abs(found.logits - label_logits(expert, row))
        else:
            error = expert.logit_scale * np.abs(np.asarray(found.embedding) - row)
        if not error.max() <= recipe.tolerance.max_abs:  # NaN fails, too
            raise BeyondTolerance(
                expert.name,
                f"max abs error of {what} is {error.max():.3g}, the recipe allows "
                f"{recipe.tolerance.max_abs:.3g}",
            )
