"""LoRA at the sites of a backbone: find sites, attach a mixture of experts, detach bit for bit."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from pidep.errors import ExpertError
from pidep.experts.folder import Expert, LoraTensors
from pidep.kernels.lora_bank import lora_bank
from pidep.kernels.lora_mixture import lora_mixture

__all__ = ["BankSite", "Mixture", "MixtureSite", "attached", "bank_rows", "find_sites", "fresh_lora", "linear_at"]

INIT_SEED = 20230428
"""Every fresh expert of one shape starts at the same A, so that Fisher embeddings are comparable across tasks."""


def find_sites(model: nn.Module, patterns: Sequence[str] = ("*",)) -> list[str]:
    """Names of the Linear layers that match any shell pattern; a pooler is only taken when named.

    Raises:
        ExpertError: a pattern matches nothing.
    """
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    chosen: set[str] = set()
    for pattern in patterns:
        found = {name for name in fnmatch.filter(linears, pattern) if "pooler" not in name or "pooler" in pattern}
        if not found:
            raise ExpertError(f"sites {pattern!r}: matches no Linear; this backbone has e.g. {', '.join(linears[:3])}")
        chosen |= found
    return [name for name in linears if name in chosen]


def linear_at(model: nn.Module, site: str) -> nn.Linear:
    """The Linear a site names.

    Raises:
        ExpertError: there is no such Linear.
    """
    try:
        module = model.get_submodule(site)
    except AttributeError:
        module = None
    if not isinstance(module, nn.Linear):
        raise ExpertError(f"site {site!r}: the backbone has no Linear of that name; the expert belongs to another backbone")
    return module


def fresh_lora(model: nn.Module, sites: Sequence[str], *, rank: int) -> dict[str, LoraTensors]:
    """Untrained factors: A Kaiming-uniform as in PEFT, the same for every task; B zero."""
    generator = torch.Generator().manual_seed(INIT_SEED)
    fresh = {}
    for site in sites:
        linear = linear_at(model, site)
        bound = (1.0 / linear.in_features) ** 0.5
        a = torch.empty(rank, linear.in_features).uniform_(-bound, bound, generator=generator)
        fresh[site] = LoraTensors(a.numpy(), torch.zeros(linear.out_features, rank).numpy())
    return fresh


class MixtureSite(nn.Module):
    """A Linear plus Σₖ αₖ sₖ BₖAₖ, α = softmax of this site's logits (or the fixed 1 of a single expert)."""

    owner: Tensor
    scaling: Tensor

    def __init__(self, parts: Sequence[LoraTensors], scalings: Sequence[float]) -> None:
        super().__init__()
        self.base: nn.Linear | None = None
        self.a = nn.Parameter(torch.cat([torch.from_numpy(part.a) for part in parts]))
        self.b = nn.Parameter(torch.cat([torch.from_numpy(part.b) for part in parts], dim=1))
        self.alpha_logits = nn.Parameter(torch.zeros(len(parts)))
        ranks = torch.tensor([len(part.a) for part in parts])
        self.register_buffer("owner", torch.repeat_interleave(torch.arange(len(parts)), ranks), persistent=False)
        self.register_buffer("scaling", torch.tensor(scalings), persistent=False)
        self.rows: tuple[Tensor, Tensor] | None = None

    def alpha(self) -> Tensor:
        """`[K]` mixture weights, summing to 1."""
        return torch.softmax(self.alpha_logits, 0)

    def weight(self) -> Tensor:
        """`[R]` αₖ sₖ for each stacked rank."""
        return (self.alpha() * self.scaling)[self.owner]

    def forward(self, x: Tensor) -> Tensor:
        """`[..., in]` to `[..., out]`."""
        assert self.base is not None
        if self.rows is not None:
            return self.base(x) + lora_bank(x, *self.rows)  # type: ignore[no-any-return]
        return self.base(x) + lora_mixture(x, self.a, self.b, self.weight())  # type: ignore[no-any-return]


class Mixture(nn.Module):
    """K experts on one backbone; `alphas` start uniform. One expert is the mixture with K = 1."""

    def __init__(self, experts: Sequence[Mapping[str, LoraTensors]], scalings: Sequence[float]) -> None:
        super().__init__()
        if len({tuple(sorted(expert)) for expert in experts}) != 1:
            raise ExpertError("mixture: the experts act on different sites; train them with the same sites")
        self.site_names = sorted(experts[0])
        self.sites = nn.ModuleList(MixtureSite([expert[site] for expert in experts], scalings) for site in self.site_names)
        self.num_experts = len(experts)

    @classmethod
    def of(cls, experts: Sequence[Expert]) -> Mixture:
        """The uniform mixture of experts on disk."""
        return cls([expert.sites for expert in experts], [expert.scaling for expert in experts])

    def by_name(self) -> Iterator[tuple[str, MixtureSite]]:
        """Site names with their modules."""
        for name, site in zip(self.site_names, self.sites, strict=True):
            assert isinstance(site, MixtureSite)
            yield name, site

    def expert_parameters(self) -> list[nn.Parameter]:
        """Every A and B."""
        return [tensor for _, site in self.by_name() for tensor in (site.a, site.b)]

    def alpha_parameters(self) -> list[nn.Parameter]:
        """Every site's logits."""
        return [site.alpha_logits for _, site in self.by_name()]

    def alphas(self) -> dict[str, list[float]]:
        """Site to its K weights."""
        return {name: site.alpha().tolist() for name, site in self.by_name()}


_CURRENT_ROWS: list[Mapping[str, tuple[Tensor, Tensor]]] = []


@contextmanager
def bank_rows(rows: Mapping[str, tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Give each `BankSite` its per-row factors for one forward pass.

    A module-level stack because `torch.export` copies modules and would lose what hangs on them.
    """
    _CURRENT_ROWS.append(rows)
    try:
        yield
    finally:
        _CURRENT_ROWS.pop()


class BankSite(nn.Module):
    """A Linear plus the LoRA of each row's own expert, taken from `bank_rows`."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.base: nn.Linear | None = None

    def forward(self, x: Tensor) -> Tensor:
        """`[B, T, in]` to `[B, T, out]`."""
        assert self.base is not None
        return self.base(x) + lora_bank(x, *_CURRENT_ROWS[-1][self.name])  # type: ignore[no-any-return]


@contextmanager
def attached(model: nn.Module, sites: Mapping[str, MixtureSite | BankSite]) -> Iterator[None]:
    """Put site modules in the place of their Linears; the very same Linears are put back afterwards.

    Raises:
        ExpertError: a site is missing or its width does not fit; nothing was attached then.
    """
    linears = {name: linear_at(model, name) for name in sites}
    for name, site in sites.items():
        if isinstance(site, MixtureSite):
            want = (linears[name].out_features, linears[name].in_features)
            found = (site.b.shape[0], site.a.shape[1])
            if want != found:
                raise ExpertError(f"site {name!r}: the expert's ΔW is {found}, the backbone needs {want}; it belongs to another backbone")
    try:
        for name, site in sites.items():
            site.base = linears[name]
            model.set_submodule(name, site)
        yield
    finally:
        for name, site in sites.items():
            model.set_submodule(name, linears[name])
            site.base = None
