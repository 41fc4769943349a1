"""`pidep sites` as a function: where experts can act on a backbone, from its config alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pidep.adapters.kinds import KINDS
from pidep.adapters.places import Survey, parameters_of, skeleton, survey
from pidep.adapters.tested import TESTED, Architecture
from pidep.backbones.load_encoder_decoder import class_of
from pidep.backbones.packages import minilm_folder
from pidep.backbones.settings import SitesSettings
from pidep.errors import ExpertError

__all__ = ["BackboneSites", "list_sites"]

_ON_MINILM = ("minilm", "pidep-mini")
"""Backbones whose experts sit on MiniLM's layers."""


@dataclass(frozen=True)
class BackboneSites:
    """A backbone, and the sites of each kind of expert."""

    backbone: str
    model: str
    """Class name of the model in transformers."""
    parameters: int
    architecture: Architecture | None
    """The tested architecture that the model is of."""
    kinds: dict[str, Survey]
    problems: dict[str, str]
    """Kinds of expert that do not fit the backbone, and why."""

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        records = {name: self._record(found) for name, found in self.kinds.items()}
        records |= {
            name: {"kind": name, "problem": problem, "sites": []}
            for name, problem in self.problems.items()
        }
        return {
            "backbone": self.backbone,
            "model": self.model,
            "parameters": self.parameters,
            "tested": self.architecture.kinds if self.architecture else [],
            "kinds": [records[name] for name in KINDS if name in records],
        }

    def _record(self, found: Survey) -> dict[str, Any]:
        return {
            "kind": found.kind,
            "changes": found.changes,
            "rank": found.rank,
            "learning_rate": found.learning_rate,
            "in_peft": found.in_peft,
            "parameters": found.parameters,
            "share": found.parameters / self.parameters,
            "sites": [
                {
                    "site": place.site,
                    "module": place.module,
                    "tensors": place.shapes,
                    "parameters": place.parameters,
                }
                for place in found.places
            ],
        }


def list_sites(settings: SitesSettings) -> BackboneSites:
    """The sites of every kind of expert, or of `kind` alone. Reads no weights.

    Raises:
        BackboneError: there is no config, or transformers has no model for it.
        ExpertError: `kind` does not fit the backbone, or a pattern matches nothing.
    """
    model = skeleton(_source(settings.backbone), class_of=class_of)
    kinds: dict[str, Survey] = {}
    problems: dict[str, str] = {}
    for name in [settings.kind] if settings.kind else KINDS:
        try:
            kinds[name] = survey(model, settings.sites, kind=name, rank=settings.rank)
        except ExpertError as error:  # it is a mistake only where this kind was asked for
            if settings.kind:
                raise
            problems[name] = str(error).partition(": ")[2]
    architecture = TESTED.get(str(getattr(model.config, "model_type", "")))
    return BackboneSites(
        settings.backbone,
        type(model).__name__,
        parameters_of(model),
        architecture,
        kinds,
        problems,
    )


def _source(backbone: str) -> str | Path:
    """The folder or hub id to read a config from."""
    return minilm_folder() if backbone in _ON_MINILM else backbone
