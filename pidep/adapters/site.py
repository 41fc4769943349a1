"""A site: the place in a backbone where K experts of one kind act. Kinds build on these classes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from pidep.adapters.arena import Arena
from pidep.adapters.bank_rows import running_bank
from pidep.errors import ExpertError
from pidep.experts.kind import Array, ExpertKind, Tensors

__all__ = [
    "AdapterKind",
    "Array",
    "BankSite",
    "ExpertSite",
    "LayerSite",
    "Tensors",
    "Undo",
    "WrappedSite",
    "drawn_first",
    "everywhere",
    "nowhere",
    "to_array",
]

Undo = Callable[[], None]
"""Undoes an attachment, bit for bit."""


class ExpertSite(nn.Module, ABC):
    """K experts at one site. Parameters are interpolated: φ̄ = Σₖ αₖ φₖ (π-Tuning, section 3.3).

    α is the softmax of the site's logits. Kinds that can mix outputs do so with `on_outputs`.
    """

    rows: Mapping[str, Tensor] | None = None
    """Tensors `[B, …]` with one expert for each row, in place of the mixture. Per-sample gradients
    are computed this way. `[1, …]` is one expert for the whole batch.
    """
    scalings: tuple[float, ...] = ()
    """s of each expert, for kinds that have one."""
    place = ""
    """The site's name in the backbone it was checked against."""
    on_outputs: bool = False
    """Mix outputs, Σₖ αₖ fₖ(x), instead of parameters, where the kind can. LoRA always does."""
    knows_rows: bool | None = None
    """Whether rows of the batch stay apart at this site, from `ForwardFacts`; None if unknown."""

    def __init__(self, num_experts: int) -> None:
        super().__init__()
        # Equal logits: a mixture starts uniform.
        self.alpha_logits = nn.Parameter(torch.zeros(num_experts))
        # Set by the mixture. Not a submodule, because all of its sites share one arena.
        self.arena_and_site: tuple[Arena, int] | None = None

    @classmethod
    def of(
        cls, parts: Sequence[Tensors], scalings: Sequence[float], *, num_learned: int
    ) -> ExpertSite:
        """A site for these experts, whose tensors go to the mixture's arena.

        A kind that keeps the tensors itself overrides this.
        """
        return cls(len(parts))

    def live_in(self, arena: Arena, site: int) -> None:
        """Read tensors from an arena, as its site number `site`."""
        self.arena_and_site = (arena, site)

    @property
    def experts(self) -> dict[str, Tensor]:
        """Every expert's tensors `[K, …]` by name."""
        assert self.arena_and_site is not None
        arena, site = self.arena_and_site
        return arena.stacked(site)

    def alpha(self) -> Tensor:
        """Mixture weights `[K]`; they sum to 1."""
        return torch.softmax(self.alpha_logits, 0)

    def tensors(self) -> Mapping[str, Tensor]:
        """The rows where they are set, else the mixture on parameters.

        Callers must broadcast over a leading batch axis.
        """
        if self.rows is not None:
            return self.rows
        assert self.arena_and_site is not None
        arena, site = self.arena_and_site
        return arena.mixed(site)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one expert's tensor."""
        assert self.arena_and_site is not None
        arena, site = self.arena_and_site
        return arena.layout[site][name].shape

    def has(self, name: str) -> bool:
        """Whether the experts have a tensor of this name."""
        assert self.arena_and_site is not None
        arena, site = self.arena_and_site
        return name in arena.layout[site]

    def parameters_of_experts(self) -> list[nn.Parameter]:
        """Learned parameters that the site itself keeps."""
        return []

    def part(self, index: int) -> dict[str, Array]:
        """Expert `index` as it is."""
        return {name: to_array(stacked[index]) for name, stacked in self.experts.items()}

    def folded(self) -> dict[str, Array]:
        """The mixture as one expert of scaling 1."""
        with torch.no_grad():
            alpha = self.alpha()
            return {
                name: to_array(torch.tensordot(alpha, stacked, 1))
                for name, stacked in self.experts.items()
            }

    @abstractmethod
    def attach(self, model: nn.Module, name: str) -> Undo:
        """Act on `model` at `name`. The returned function undoes it bit for bit."""


class WrappedSite(ExpertSite):
    """Stands in place of the module `base` that it wraps, and forwards attribute access to it."""

    base: nn.Module | None

    def __init__(self, num_experts: int) -> None:
        super().__init__(num_experts)
        self.base = None

    def __getattr__(self, name: str) -> Any:
        """The wrapped module's attribute. transformers' T5 reads `wo.weight.dtype`, for example."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            # Through `__dict__`: a plain attribute would call `__getattr__` again, without end.
            base = self.__dict__.get("_modules", {}).get("base")
            if base is None:
                raise
            return getattr(base, name)

    def attach(self, model: nn.Module, name: str) -> Undo:
        """Take the module's place. The returned function puts the same module back."""
        base = model.get_submodule(name)
        self.base = base
        model.set_submodule(name, self)

        def detach() -> None:
            # The same object, so that its weights and hooks are what they were.
            model.set_submodule(name, base)
            self.base = None

        return detach


class BankSite(WrappedSite):
    """A module of the backbone in a bank graph; a kind adds each row's own expert to its output."""

    kind: str

    def __init__(self, name: str) -> None:
        super().__init__(1)
        self.name = name

    def forward(self, x: Tensor, *more: Any, **options: Any) -> Tensor:
        """The module, then `act`."""
        assert self.base is not None
        y = cast(Tensor, self.base(x, *more, **options))
        if y.dim() > 2:
            return self.act(x, y)
        # A pooler reads one vector of each row; experts have an axis for tokens.
        return self.act(x.unsqueeze(1), y.unsqueeze(1)).squeeze(1)

    def own(self, factor: str) -> Tensor:
        """A factor of the rows' experts, `[G, K·size, width]`."""
        return running_bank().own(self.kind, factor, self.name)

    def weights(self, factor: str) -> Tensor:
        """The weight of each of the K·size units of `own(factor)`, `[G, 1, K·size]`."""
        return running_bank().weights(self.kind, factor, self.name)

    @abstractmethod
    def act(self, x: Tensor, y: Tensor) -> Tensor:
        """Input `[B, T, in]` and output `[B, T, out]` of the module to the new output.

        Experts come from `own` and `weights`, and meet x and y by `pidep.adapters.row_ops`.
        """


class LayerSite(WrappedSite):
    """A layer `[..., in] → [..., out]` whose output experts change."""

    def forward(self, x: Tensor, *more: Any, **options: Any) -> Tensor:
        """Run the layer, then `act`. With `rows`, the batch is split into samples first."""
        assert self.base is not None
        y = cast(Tensor, self.base(x, *more, **options))
        if self.rows is None:
            return self.act(x, y)
        # Models flatten the batch in their own ways (Swin's windows, OPT's [B·T]); rows must be
        # told apart again.
        count = self._num_rows(x)
        return self.act(
            x.reshape(count, -1, x.shape[-1]), y.reshape(count, -1, y.shape[-1])
        ).reshape(y.shape)

    @abstractmethod
    def act(self, x: Tensor, y: Tensor) -> Tensor:
        """Input `[..., in]` and output `[..., out]` of the layer to the new output.

        With rows, the shapes are `[B, N, in]` and `[B, N, out]`.
        """

    def _num_rows(self, x: Tensor) -> int:
        assert self.rows is not None
        count = len(next(iter(self.rows.values())))
        apart = count == 1 or (
            len(x) == count if self.knows_rows is None else self.knows_rows and len(x) % count == 0
        )
        if not apart:
            raise ExpertError(
                f"site {self.place!r}: samples cannot be told apart there, some of its inputs are "
                "not of one sample (as with DeBERTa's "
                "query_proj and key_proj, which also read relative positions); choose other "
                "`sites`, or batches of one"
            )
        return count


def to_array(tensor: Tensor) -> Array:
    """A copy in fp32 on the host, from any device and precision."""
    # A copy: the numpy view of a CPU tensor would change with the next optimizer step.
    return np.array(tensor.detach().float().cpu().numpy(), order="C")


def drawn_first(name: str) -> Callable[[str, tuple[int, ...], torch.Generator], Tensor]:
    """A start that draws one factor, Kaiming-uniform as in PEFT, and sets the others to zero.

    A product with a zero factor is zero, so an untrained expert changes nothing.
    """

    def start(factor: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        # Only one is zero: with both zero, neither would have a gradient.
        if factor != name:
            return torch.zeros(shape)
        bound = shape[1] ** -0.5
        return torch.empty(shape).uniform_(-bound, bound, generator=generator)

    return start


def everywhere(_: nn.Module, __: Sequence[str]) -> bool:
    """`AdapterKind.in_peft` of a kind that PEFT has for every backbone."""
    return True


def nowhere(_: nn.Module, __: Sequence[str]) -> bool:
    """`AdapterKind.in_peft` of a kind that PEFT does not have."""
    return False


def _with_idle_units(_: str, parts: Sequence[Tensors]) -> Sequence[Tensors]:
    """Tensors padded with zeros to the longest of each axis."""
    shapes = {name: np.max([part[name].shape for part in parts], axis=0) for name in parts[0]}

    def padded(name: str, value: Array) -> Array:
        # A unit of zeros adds nothing: relu(0) times a zero column of `up`.
        missing = shapes[name] - value.shape
        return np.pad(value, [(0, int(more)) for more in missing]) if missing.any() else value

    return [{name: padded(name, value) for name, value in part.items()} for part in parts]


@dataclass(frozen=True)
class AdapterKind:
    """How experts of one kind act on a torch module.

    Each kind is one file in `pidep/adapters/kinds`, which ends with its `KIND`.
    """

    expert: ExpertKind
    """The other half: tensors, files, bank packing."""
    site: type[ExpertSite]
    needs: str
    """Completes the message "BertModel has no …" for a backbone without a site."""
    changes: str
    """One phrase for the documentation and `pidep sites`."""
    candidates: Callable[[nn.Module], list[str]]
    """Every site of a backbone, in the order of its modules."""
    shapes: Callable[[nn.Module, str, int], dict[str, tuple[int, ...]]]
    """Tensor shapes at a site of the backbone, for a size."""
    start: Callable[[str, tuple[int, ...], torch.Generator], Tensor]
    """An untrained tensor, by name and shape. An untrained expert changes nothing, or almost
    nothing.
    """
    learning_rate: float
    """A peak learning rate that works on small encoders."""
    place: str = ""
    """The word for a site in messages; "place for a NAME expert" when empty."""
    default_patterns: tuple[str, ...] = ("*",)
    named_patterns: Mapping[str, Callable[[list[str]], list[str]]] | None = None
    """Names for a choice among the candidates, usable like a pattern."""
    around: Callable[[nn.Module, Mapping[str, ExpertSite]], Undo] | None = None
    """A change of the whole model while sites of this kind are attached, made once for
    all sites.
    """
    mixes_outputs: bool = False
    """Whether a mixture can act on outputs instead of parameters and still fold into one expert."""
    same_shapes: Callable[[str, Sequence[Tensors]], Sequence[Tensors]] = _with_idle_units
    """Brings the tensors of K experts at a site to the same shapes; each still acts as before.
    Called where outputs can be mixed."""
    only_on_outputs: Callable[[Tensors], bool] = lambda _: False
    """Whether an expert's tensors at a site cannot be averaged with those of other experts."""
    keeps_tensors: bool = False
    """Whether sites keep the tensors themselves, because something else than parameters
    is mixed.
    """
    in_peft: Callable[[nn.Module, Sequence[str]], bool] = nowhere
    """Whether `peft` can run an expert at these sites of this backbone."""
    fold: (
        Callable[[nn.Module, Mapping[str, Tensors], float], AbstractContextManager[None]] | None
    ) = None
    """Adds an expert of a scaling to the backbone's weights; they come back bit for bit."""
    as_constants: bool = False
    """Whether a merged graph holds the tensors as they are, each as a constant; asked of kinds
    without `fold`."""
    bank_site: Callable[[str], ExpertSite] | None = None
    """What acts at a site of a bank graph. It reads its factors from `running_bank`."""
    bank_around: Callable[[nn.Module, Mapping[str, ExpertSite]], Undo] | None = None
    """As `around`, while bank sites are attached."""
    bank_shared: frozenset[str] = frozenset()
    """Factors that meet a layer's input. Layers that read the same input use them together."""
    bank_first: frozenset[str] = frozenset()
    """Factors that are the same at all sites; the graph reads those of the first site."""
    bank_shapes: (
        Callable[[nn.Module, Sequence[str], int], dict[str, dict[str, tuple[int, ...]]]] | None
    ) = None
    """As `shapes`, for all sites of a bank; `shapes` itself when absent."""

    @property
    def name(self) -> str:
        """The kind's name."""
        return self.expert.name

    @property
    def optional(self) -> frozenset[str]:
        """Tensors that a site may have beside those of `shapes`."""
        return self.expert.optional

    def size_of(self, tensors: Tensors) -> int:
        """Rank, bottleneck width or number of virtual tokens of an expert's tensors."""
        return self.expert.size_of(tensors)
