"""K experts of one kind on one backbone, and attaching them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import nn

from pidep.adapters.arena import Arena
from pidep.adapters.dense import linear_at
from pidep.adapters.forward_facts import forward_facts
from pidep.adapters.kinds import adapter_kind
from pidep.adapters.places import device_of, find_sites, fresh, place_of
from pidep.adapters.site import Array, ExpertSite, Tensors, Undo, WrappedSite
from pidep.errors import ExpertError
from pidep.experts.folder import Expert
from pidep.experts.mixed import MixedExpert, Served, parts_of

__all__ = [
    "AlphaPer",
    "Mixture",
    "attached",
    "find_sites",
    "fresh",
    "linear_at",
    "mixture_of",
]

AlphaPer = Literal["site", "layer", "global"]

_LEAST_SHARE = 1e-12
"""Far below the rounding of fp32."""


def _layer_of(site: str) -> str:
    """The site's name up to the layer number."""
    parts = site.split(".")
    numbered = next((index for index, part in enumerate(parts) if part.isdigit()), len(parts) - 1)
    return ".".join(parts[: numbered + 1])


class Mixture(nn.Module):
    """K experts on one backbone; α starts uniform. A single expert is the mixture with K = 1.

    Args:
        experts: for each expert, site to tensors; all experts have the same sites.
        scalings: s of each expert (1 for every kind but LoRA).
        per: one softmax for each site (the default), for each layer, or for the whole backbone.
        num_learned: number of experts, from the first, that can be learned. The others get no
            gradient. All when absent.
        on_outputs: mix outputs instead of parameters, where the kind can (adapter, prefix). LoRA
            and prefixes with a bias always do.

    Raises:
        ExpertError: the experts have different sites, or their tensors do not fit together.
    """

    def __init__(
        self,
        experts: Sequence[Mapping[str, Tensors]],
        scalings: Sequence[float],
        *,
        kind: str = "lora",
        per: AlphaPer = "site",
        num_learned: int | None = None,
        on_outputs: bool = False,
    ) -> None:
        super().__init__()
        if len({tuple(sorted(expert)) for expert in experts}) != 1:
            raise ExpertError(
                "mixture: the experts act on different sites; train them with the same sites"
            )
        self.kind = kind
        experts, on_outputs = (
            _same_shapes(experts, kind),
            on_outputs or _only_on_outputs(experts, kind),
        )
        # Sorted, so that α's order does not depend on the order in a file.
        self.site_names = sorted(experts[0])
        self.num_experts = len(experts)
        learned = len(experts) if num_learned is None else num_learned
        of = adapter_kind(kind).site.of
        self.sites = nn.ModuleList(
            of([expert[site] for expert in experts], scalings, num_learned=learned)
            for site in self.site_names
        )
        # Sites with one softmax share one Parameter, so that the optimizer sees it once.
        shared: dict[str, nn.Parameter] = {}
        for name, site in self.by_name():
            group = {"site": name, "layer": _layer_of(name), "global": ""}[per]
            site.alpha_logits = shared.setdefault(group, site.alpha_logits)
            site.on_outputs = on_outputs and adapter_kind(kind).mixes_outputs
        self.arena = None if adapter_kind(kind).keeps_tensors else self._arena_of(experts, learned)

    def _arena_of(self, experts: Sequence[Mapping[str, Tensors]], num_learned: int) -> Arena:
        logits = [site.alpha_logits for _, site in self.by_name()]
        arena = Arena(
            [[expert[name] for name in self.site_names] for expert in experts],
            logits,
            num_learned=num_learned,
        )
        for number, (_, site) in enumerate(self.by_name()):
            site.live_in(arena, number)
        return arena

    @classmethod
    def of(
        cls,
        experts: Sequence[Expert],
        *,
        per: AlphaPer = "site",
        num_learned: int | None = None,
        on_outputs: bool = False,
    ) -> Mixture:
        """The uniform mixture of experts.

        Raises:
            ExpertError: they are of different kinds.
        """
        kinds = sorted({expert.kind for expert in experts})
        if len(kinds) != 1:
            raise ExpertError(
                f"mixture: experts of different kinds ({', '.join(kinds)}) cannot be interpolated; "
                "use one kind"
            )
        scalings = [expert.scaling for expert in experts]
        sites = [expert.sites for expert in experts]
        return cls(
            sites, scalings, kind=kinds[0], per=per, num_learned=num_learned, on_outputs=on_outputs
        )

    def by_name(self) -> Iterator[tuple[str, ExpertSite]]:
        """Site names with their modules."""
        for name, site in zip(self.site_names, self.sites, strict=True):
            assert isinstance(site, ExpertSite)
            yield name, site

    def alpha_parameters(self) -> list[nn.Parameter]:
        """The logits of every softmax, each once."""
        return list(
            {id(site.alpha_logits): site.alpha_logits for _, site in self.by_name()}.values()
        )

    def expert_parameters(self) -> list[nn.Parameter]:
        """The tensors of the experts that can be learned."""
        at_sites = [
            parameter for _, site in self.by_name() for parameter in site.parameters_of_experts()
        ]
        # One parameter for all sites: the optimizer updates the arena in one step.
        return at_sites if self.arena is None else [self.arena.learned]

    def alphas(self) -> dict[str, list[float]]:
        """Site to its K weights."""
        return {name: site.alpha().tolist() for name, site in self.by_name()}

    @property
    def folds_larger(self) -> bool:
        """Whether `folded` is larger than a part: the parts act side by side, on outputs."""
        sides = adapter_kind(self.kind).keeps_tensors or any(
            site.on_outputs for _, site in self.by_name()
        )
        return self.num_experts > 1 and sides

    def part(self, index: int) -> dict[str, dict[str, Array]]:
        """Expert `index` as it is now, not folded."""
        return {name: site.part(index) for name, site in self.by_name()}

    def folded(self) -> dict[str, dict[str, Array]]:
        """The mixture as one expert of scaling 1, exactly.

        A mixture on outputs is concatenated (rank Σ rank_k); one on parameters is averaged.
        """
        return {name: site.folded() for name, site in self.by_name()}

    def check(self, model: nn.Module) -> None:
        """Refuse a backbone that the experts do not fit.

        Raises:
            ExpertError: a site is missing, or a tensor has another shape than the backbone needs.
        """
        kind = adapter_kind(self.kind)
        # Everything is checked before the first site is attached.
        candidates = set(kind.candidates(model))
        apart = forward_facts(model).apart
        for name, site in self.by_name():
            if name not in candidates:
                raise ExpertError(
                    f"site {name!r}: the backbone has no {place_of(kind)} of that name; the expert "
                    "belongs to another backbone"
                )
            part = site.part(0)
            # The names do not depend on the size, so any size will do.
            needed = kind.shapes(model, name, 1).keys()
            if not needed <= part.keys() <= {*needed, *kind.optional}:
                found, expected = (", ".join(sorted(names)) for names in (part, needed))
                raise ExpertError(
                    f"site {name!r}: the expert has {found}, expected {expected} of a {self.kind}; "
                    "train it again"
                )
            for tensor, shape in kind.shapes(model, name, kind.size_of(part)).items():
                if part[tensor].shape != shape:
                    raise ExpertError(
                        f"site {name!r}: the expert's {tensor} is {part[tensor].shape}, the "
                        f"backbone needs {shape}; "
                        "it belongs to another backbone"
                    )
            site.place, site.knows_rows = name, None if apart is None else name in apart


def mixture_of(served: Served) -> Mixture:
    """The mixture that answers as a bank does; of an expert, the one with K = 1.

    Raises:
        ExpertError: as `Mixture.of`.
    """
    found = Mixture.of(parts_of(served), on_outputs=True)
    if isinstance(served, MixedExpert):
        with torch.no_grad():
            for name, site in found.by_name():
                # α is the softmax of its logits; a share of 0 has no logarithm.
                alpha = torch.tensor(served.alphas[name], dtype=torch.float64)
                site.alpha_logits.copy_(alpha.clamp(min=_LEAST_SHARE).log())
    return found


def _same_shapes(
    experts: Sequence[Mapping[str, Tensors]], kind: str
) -> Sequence[Mapping[str, Tensors]]:
    """The experts' tensors in the same shapes, for kinds that mix outputs."""
    found = adapter_kind(kind)
    for site, tensors in experts[0].items():
        for other in experts[1:]:
            if not tensors.keys() ^ other[site].keys() <= found.optional:
                names = (", ".join(sorted(one)) for one in (tensors, other[site]))
                raise ExpertError(
                    f"site {site!r}: one expert has {' and another '.join(names)}; train them as "
                    "one kind"
                )
    if not found.mixes_outputs:
        return experts
    alike = {
        site: found.same_shapes(site, [expert[site] for expert in experts]) for site in experts[0]
    }
    return [{site: alike[site][number] for site in alike} for number in range(len(experts))]


def _only_on_outputs(experts: Sequence[Mapping[str, Tensors]], kind: str) -> bool:
    return len(experts) > 1 and any(
        adapter_kind(kind).only_on_outputs(tensors)
        for expert in experts
        for tensors in expert.values()
    )


@contextmanager
def attached(
    model: nn.Module, mixture: Mixture | Mapping[str, WrappedSite] | None
) -> Iterator[None]:
    """The experts act on the model inside. Afterwards the backbone is what it was, bit for bit.

    A mixture moves to where the model is, and stays there.

    Raises:
        ExpertError: the experts do not fit; nothing was attached.
    """
    undo: list[Undo] = []
    sites: Mapping[str, ExpertSite]
    if isinstance(mixture, Mixture):
        mixture.check(model)
        if device_of(mixture) != device_of(model):
            mixture.to(device_of(model))
        sites = dict(mixture.by_name())
        around, arena = adapter_kind(mixture.kind).around, mixture.arena
    else:
        sites, around, arena = mixture or {}, None, None
    try:
        if arena is not None:
            # First, so that its hook runs before any site reads the arena.
            undo.append(_fresh_graphs(model, arena))
        if around is not None:
            undo.append(around(model, sites))
        for name, site in sites.items():
            undo.append(site.attach(model, name))
        yield
    finally:
        # In reverse: a site may wrap what an earlier step changed.
        for detach in reversed(undo):
            detach()


def _fresh_graphs(model: nn.Module, arena: Arena) -> Undo:
    """Let every forward pass interpolate in a graph of its own.

    The losses of two passes can then be differentiated one after the other.
    """
    hook = model.register_forward_pre_hook(lambda *_: arena.forget_graph())

    def back() -> None:
        hook.remove()
        # The mixture of this pass must not outlive the attachment: it holds the graph and its
        # memory.
        arena.forget()

    return back
