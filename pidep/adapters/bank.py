"""Bank sites of every kind on one backbone: each row of a batch has an expert of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import nn

from pidep.adapters.bank_rows import BankLayout
from pidep.adapters.forward_facts import forward_facts
from pidep.adapters.kinds import adapter_kind
from pidep.adapters.site import BankSite, ExpertSite, Undo
from pidep.errors import ExpertError
from pidep.experts.kind import BankGroup
from pidep.experts.kinds import expert_kind

__all__ = ["attached_bank", "bank_groups", "bank_layout"]


def bank_groups(
    model: nn.Module, sites: Sequence[str], *, kind: str = "lora", size: int
) -> list[BankGroup]:
    """The graph inputs that hold experts of a kind at these sites, in a fixed order.

    Args:
        size: rank, bottleneck width or virtual tokens of the largest expert.
    """
    found = adapter_kind(kind)
    if found.bank_shapes is not None:
        shapes = found.bank_shapes(model, sites, size)
    else:
        shapes = {site: found.shapes(model, site, size) for site in sites}
    return expert_kind(kind).bank_groups(shapes)


def bank_layout(model: nn.Module, groups: Sequence[BankGroup]) -> BankLayout:
    """Where sites find their factors in the groups; made before anything is attached."""
    shared = {
        (kind, factor)
        for kind in {group.kind for group in groups}
        for factor in adapter_kind(kind).bank_shared
    }
    return BankLayout(groups, forward_facts(model).together, shared)


@contextmanager
def attached_bank(model: nn.Module, groups: Sequence[BankGroup]) -> Iterator[None]:
    """Bank sites act on the model inside; each reads its rows from `running_bank`.

    Raises:
        ExpertError: rows with and without a kind cannot share a batch of this backbone.
    """
    undo: list[Undo] = []
    try:
        for kind, sites in _sites_of(groups).items():
            around = adapter_kind(kind).bank_around
            if around is not None:
                undo.append(around(model, sites))
            # A layer may have sites of several kinds. They wrap each other, and each row has one
            # expert at most, so their order does not matter.
            for name, site in sites.items():
                _require_apart(model, name, site)
                undo.append(site.attach(model, name))
        yield
    finally:
        # In reverse: a site may wrap what an earlier step changed.
        for detach in reversed(undo):
            detach()


def _require_apart(model: nn.Module, name: str, site: ExpertSite) -> None:
    apart = forward_facts(model).apart
    if isinstance(site, BankSite) and apart is not None and name not in apart:
        raise ExpertError(
            f"site {name!r}: rows cannot be told apart there, some of its inputs are not of one "
            "row (as with DeBERTa's query_proj, which also reads relative positions); choose "
            "other `sites` or export the expert with `form=merged`"
        )


def _sites_of(groups: Sequence[BankGroup]) -> Mapping[str, Mapping[str, ExpertSite]]:
    """Kind to site to what acts there."""
    found: dict[str, dict[str, ExpertSite]] = {}
    for group in groups:
        make = adapter_kind(group.kind).bank_site
        if make is None:
            raise ExpertError(f"expert kind {group.kind!r}: no bank holds it")
        sites = found.setdefault(group.kind, {})
        for site in group.sites:
            if site not in sites:
                sites[site] = make(site)
    return found
