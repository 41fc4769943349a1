"""Which experts a bank must hold, on which backbone, and with how much room."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pidep.adapters.bank import bank_groups
from pidep.backbones.backbone import Backbone
from pidep.backbones.load import load_any_backbone
from pidep.errors import ExpertError, UsageError
from pidep.experts.bank import BankGroup, positions_before, require_bank_kind
from pidep.experts.folder import Expert
from pidep.experts.kind_names import kind_names
from pidep.experts.kinds import expert_kind
from pidep.experts.mixed import Served, parts_of
from pidep.experts.validation import require_valid, require_within
from pidep.export.bound import require_sites
from pidep.export.recipe import Recipe
from pidep.export.source import Source
from pidep.export.towers import graph_groups

__all__ = [
    "checked_bank",
    "groups_for",
    "require_able",
    "require_backbone",
    "require_profile_room",
    "text_room",
]


def checked_bank(
    sources: Sequence[Source], published: Mapping[str, Served]
) -> tuple[Backbone, list[Expert]]:
    """The bank's backbone, and every expert that needs room in it, parts of mixtures included.

    Raises:
        UsageError: no expert, or two of one name.
        ExpertError: an expert of another backbone, or of a kind that no bank holds.
    """
    names = [source.expert.name for source in sources]
    if len(set(names)) != len(names) or not names:
        found = ", ".join(names) or "none"
        raise UsageError(f"export: expected runs with different names, found {found}")
    given = [part for source in sources for part in source.parts]
    backbone = _backbone_of(given)
    for expert in given:
        require_bank_kind(expert)
        require_able(backbone, expert)
    for source in sources:
        width, most = backbone.hidden_size, backbone.max_positions
        require_within(source.expert, width=width, max_positions=most)
    # An expert that is exported again replaces its published version.
    kept = [
        part for name, served in published.items() if name not in names for part in parts_of(served)
    ]
    for expert in kept:
        require_backbone(backbone, expert)
        require_sites(backbone, expert)
    return backbone, [*given, *kept]


def require_profile_room(sources: Sequence[Source], recipe: Recipe) -> None:
    """Refuse, before minutes of work, more experts than TensorRT's engine has room for.

    Raises:
        UsageError: too many experts at once, or a mixture of too many.
    """
    if recipe.profile is None:
        return
    found, room = sum(len(source.parts) for source in sources), recipe.profile.experts[-1] - 1
    if found > room:
        raise UsageError(
            f"recipe {recipe.name!r}: its profile has room for {room} experts, found {found}; "
            "give `profile` more `experts`, one of them for the bare backbone"
        )
    largest = max(sources, key=lambda source: len(source.parts), default=None)
    if largest is not None and len(largest.parts) > (most := recipe.profile.mixed[-1]):
        raise UsageError(
            f"mixture {largest.expert.name!r}: has {len(largest.parts)} parts, the profile of "
            f"recipe {recipe.name!r} takes {most}; give it more `mixed`, or fold the mixture"
        )


def require_backbone(backbone: Backbone, expert: Expert) -> None:
    if expert.backbone_digest not in backbone.compatible_digests:
        raise ExpertError(
            f"expert {expert.name!r}: made for backbone {expert.backbone!r} "
            f"({expert.backbone_digest[:19]}…), this is {backbone.name!r} "
            f"({backbone.digest[:19]}…); export it with its own backbone"
        )


def require_able(backbone: Backbone, expert: Expert) -> None:
    """Refuse an expert that cannot answer on the backbone.

    Raises:
        ExpertError: damaged tensors, too many virtual tokens, or a site that is not there.
    """
    require_valid(expert)
    require_within(expert, width=backbone.hidden_size, max_positions=backbone.max_positions)
    require_sites(backbone, expert)


def _backbone_of(experts: Sequence[Expert]) -> Backbone:
    """The backbone that all experts run on: `pidep-mini` where some are of its text encoder.

    Raises:
        ExpertError: there is none.
    """
    found = [
        load_any_backbone(name) for name in dict.fromkeys(expert.backbone for expert in experts)
    ]

    def holds(backbone: Backbone) -> int:
        return sum(expert.backbone_digest in backbone.compatible_digests for expert in experts)

    # pidep-mini runs experts of its text encoder, and the text encoder runs none of pidep-mini's.
    backbone = max(found, key=holds)
    for expert in experts:
        require_backbone(backbone, expert)
    return backbone


def text_room(backbone: Backbone, expert: Expert) -> int:
    """Tokens a text is cut to: virtual tokens take positions of the backbone's table, too."""
    if not expert_kind(expert.kind).in_bank:
        return expert.max_length
    sites = list(expert.sites)
    groups = bank_groups(backbone.model, sites, kind=expert.kind, size=expert.rank)
    return min(expert.max_length, backbone.max_positions - positions_before(expert, groups))


def groups_for(
    backbone: Backbone, experts: Sequence[Expert], max_rank: int | None
) -> list[BankGroup]:
    """Graph inputs with room for the experts: for each kind, all of its sites and its largest size.

    Raises:
        UsageError: a LoRA of a larger rank than `max_rank`.
    """
    groups: list[BankGroup] = []
    # The registry's order, not the experts': the graph must not depend on the order of the runs.
    for kind in kind_names():
        some = [expert for expert in experts if expert.kind == kind]
        if some:
            size = _largest(some, max_rank if kind == "lora" else None)
            sites = _bank_sites(backbone, some)
            groups += graph_groups(backbone, sites, kind=kind, size=size)
    return groups


def _largest(experts: Sequence[Expert], limit: int | None) -> int:
    """The largest size of the experts, or the limit."""
    largest = max(expert.rank for expert in experts)
    if limit is not None and limit < largest:
        raise UsageError(
            f"`max_rank` {limit}: an expert has rank {largest}; "
            "raise it or fold that expert to a smaller rank"
        )
    return limit or largest


def _bank_sites(backbone: Backbone, experts: Sequence[Expert]) -> list[str]:
    """The union of the experts' sites, in the backbone's order."""
    wanted = {site for expert in experts for site in expert.sites}
    return [name for name, _ in backbone.model.named_modules() if name in wanted]
