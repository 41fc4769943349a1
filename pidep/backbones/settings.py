"""The settings of `pidep sites`, and where a backbone runs. No torch and no numpy."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import Field

from pidep.experts.kind_names import kind_names
from pidep.experts.kind_setting import KindName
from pidep.settings import Settings, Shown

__all__ = ["Device", "SitesSettings"]

EXPERT = Shown("Expert")
Device: TypeAlias = Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:[0-9]{1,3})?)$")]
"""Where a backbone runs."""


class SitesSettings(Settings):
    """A backbone, and the experts whose sites are listed."""

    backbone: Annotated[str, Shown("Expert", argument=True)] = "minilm"
    """minilm, pidep-mini, a folder with a config.json (weights are not needed), or a hub id."""
    kind: Annotated[KindName | None, Shown("Expert", choices=kind_names)] = None
    """List every site of this kind of expert. Without it, all kinds."""
    sites: Annotated[tuple[str, ...], Shown("Expert", aliases=("--pattern",))] = ()
    """Shell patterns of the sites. Without them, those where `pidep tune` puts experts."""
    rank: Annotated[int, Shown("Expert", aliases=("--size",))] = Field(default=8, ge=1)
    """LoRA rank, adapter width, or number of virtual tokens."""
    tested: Annotated[bool, EXPERT] = False
    """List the architectures and kinds of expert that are tested instead."""
