"""What a bank leaves to merged models: experts of earlier banks, and the models themselves."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

from pidep.adapters.mixture import mixture_of
from pidep.artifacts.bank import BankRecord
from pidep.artifacts.left_out import LeftOut
from pidep.artifacts.names import BANK, MERGED_RECORD, VERSION
from pidep.errors import ServingError
from pidep.export.entries import StagedEntry, staged_merged
from pidep.export.recipe import Recipe
from pidep.export.source import Source

__all__ = ["carried_over", "left_out_before", "staged_alone", "warn_of_models"]

_LOG = logging.getLogger(__name__)


def left_out_before(repo: Path) -> dict[str, LeftOut]:
    """What the repository's bank has left out, and other models still serve."""
    try:
        held = BankRecord.read(repo / BANK / VERSION).left_out or {}
    except ServingError:
        return {}  # no bank, or a damaged one
    return {
        name: one
        for name, one in held.items()
        if (repo / one.model / VERSION / MERGED_RECORD).is_file()
    }


def carried_over(
    before: Mapping[str, LeftOut], *, given: Collection[str], recipe: Recipe
) -> dict[str, LeftOut]:
    """What the next bank still says about these experts.

    Args:
        before: as `left_out_before` gives them.
        given: the names that the new bank decides anew.
        recipe: the new bank's.
    """
    return {
        name: one.model_copy(update={"earlier": one.precision != recipe.precision})
        for name, one in before.items()
        if name not in given
    }


def staged_alone(
    source: Source, repo: Path, recipe: Recipe, *, keep_rows: bool
) -> AbstractContextManager[StagedEntry]:
    """The merged model of an expert that a bank leaves out; a mixture is folded into one."""
    _LOG.info("export: leaves %s to a model of its own", source.expert.name)
    if (mixture := source.mixture) is not None:
        sites = mixture_of(mixture).folded()
        kind = mixture.parts[0].kind
        expert = replace(mixture.head, sites=dict(sites), kind=kind, scaling=1.0)
        source = replace(source, expert=expert, mixture=None)
    return staged_merged(source, repo, recipe, keep_rows=keep_rows)


def warn_of_models(repo: Path, before: Mapping[str, LeftOut], *, passed: Collection[str]) -> None:
    """Say which merged models a bank needs no longer.

    Args:
        before: as `left_out_before` gives them.
        passed: names that the new bank serves.
    """
    for name in sorted(before.keys() & set(passed)):
        model = before[name].model
        _LOG.warning(
            "export: %s is in the bank now, and model %s still serves the version before; remove "
            "%s when nobody asks for it",
            name,
            model,
            repo / model,
        )
