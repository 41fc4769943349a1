"""Sites of a backbone by pattern, untrained experts for them, and a survey of all sites."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pidep.adapters.forward_facts import forward_facts
from pidep.adapters.kinds import adapter_kind
from pidep.adapters.site import AdapterKind, Tensors
from pidep.errors import BackboneError, ExpertError

__all__ = [
    "Place",
    "Survey",
    "device_name",
    "device_of",
    "find_sites",
    "fresh",
    "loading_fault",
    "parameters_of",
    "peft_can",
    "place_of",
    "skeleton",
    "survey",
]

INIT_SEED = 20230428
"""Seed of untrained experts. One seed for all tasks keeps Fisher embeddings comparable."""


@dataclass(frozen=True)
class Place:
    """A site of a backbone, with the tensors an expert would have there."""

    site: str
    module: str
    """Class name of the backbone's module."""
    shapes: Mapping[str, tuple[int, ...]]

    @property
    def parameters(self) -> int:
        """Number of parameters of an expert at this site."""
        return sum(math.prod(shape) for shape in self.shapes.values())


@dataclass(frozen=True)
class Survey:
    """Every site of a kind on a backbone."""

    kind: str
    changes: str
    rank: int
    learning_rate: float
    in_peft: bool
    """Whether `peft` can run an expert at all of these sites."""
    places: tuple[Place, ...]

    @property
    def parameters(self) -> int:
        """Number of parameters of an expert."""
        return sum(place.parameters for place in self.places)


def find_sites(
    model: nn.Module, patterns: Sequence[str] = ("*",), *, kind: str = "lora"
) -> list[str]:
    """Names of the sites that match any shell pattern, in the backbone's order.

    Poolers, the output vocabulary's layer, and layers that no forward pass calls are chosen only by
    their full name. A kind's own words (`houlsby`, `pfeiffer`) are patterns, too.

    Raises:
        ExpertError: the kind does not fit the backbone, or a pattern matches nothing.
    """
    found = adapter_kind(kind)
    candidates = found.candidates(model)
    if not candidates:
        raise ExpertError(
            f"{kind} experts: {type(model).__name__} has no {found.needs}; use another kind"
        )
    # An expert at a layer that never runs would train without effect, and nothing would say so.
    heads = _heads(model) | forward_facts(model).idle
    chosen: set[str] = set()
    for pattern in patterns:
        words = found.named_patterns or {}
        if pattern in words:
            matched = set(words[pattern]([name for name in candidates if name not in heads]))
        else:
            matched = {
                name
                for name in fnmatch.filter(candidates, pattern)
                if name == pattern or not _is_head(name, pattern, heads)
            }
        if not matched:
            raise ExpertError(
                f"sites {pattern!r}: matches no {place_of(found)}; this backbone has e.g. "
                f"{', '.join(candidates[:3])}"
            )
        chosen |= matched
    return [name for name in candidates if name in chosen]


def place_of(kind: AdapterKind) -> str:
    """The word for a site of the kind in messages."""
    return kind.place or f"place for a {kind.name} expert"


def _heads(model: nn.Module) -> set[str]:
    try:
        # Shared with the vocabulary's embeddings in many models; an expert there would change the
        # input as well.
        head = model.get_output_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        head = None
    return {name for name, module in model.named_modules() if module is head}


def _is_head(name: str, pattern: str, heads: set[str]) -> bool:
    # BERT calls its pooler, and mean pooling does not read it. An expert there would not act.
    return name in heads or ("pooler" in name and "pooler" not in pattern)


def fresh(
    model: nn.Module, sites: Sequence[str], *, kind: str = "lora", rank: int
) -> dict[str, Tensors]:
    """Untrained tensors at the sites, the same for every task."""
    found = adapter_kind(kind)
    # A generator of its own: the caller's random state is neither read nor moved.
    generator = torch.Generator().manual_seed(INIT_SEED)
    return {
        site: {
            name: found.start(name, shape, generator).numpy()
            for name, shape in found.shapes(model, site, rank).items()
        }
        for site in sites
    }


def peft_can(model: nn.Module, sites: Sequence[str], *, kind: str) -> bool:
    """Whether `peft` can run an expert of this kind at these sites; the value of `Expert.peft`."""
    return adapter_kind(kind).in_peft(model, sites)


def survey(
    model: nn.Module, patterns: Sequence[str] | None = None, *, kind: str, rank: int
) -> Survey:
    """Every site of a kind, with the shapes of an expert of `rank`.

    Reads no weights: `meta` will do.

    Raises:
        ExpertError: the kind does not fit the backbone, or a pattern matches nothing.
    """
    found = adapter_kind(kind)
    sites = find_sites(model, patterns or found.default_patterns, kind=kind)
    places = tuple(
        Place(site, type(model.get_submodule(site)).__name__, found.shapes(model, site, rank))
        for site in sites
    )
    return Survey(
        kind, found.changes, rank, found.learning_rate, found.in_peft(model, sites), places
    )


def skeleton(
    source: str | Path, *, class_of: Callable[[Any], str | None] = lambda _: None
) -> nn.Module:
    """The modules of a transformers backbone without weights, on the `meta` device.

    Args:
        source: a folder with a config.json, or a hub id.
        class_of: gives the transformers class of a config that AutoModel does not know.

    Raises:
        BackboneError: there is no config, or transformers has no model for it.
    """
    import transformers
    from transformers import AutoConfig, AutoModel

    try:
        config: Any = AutoConfig.from_pretrained(source, trust_remote_code=False)
        name = class_of(config)
        # Sites and shapes need no weights: a large model is surveyed in seconds.
        with torch.device("meta"):
            model: nn.Module = (
                AutoModel.from_config(  # type: ignore[no-untyped-call]
                    config, trust_remote_code=False
                )
                if name is None
                else getattr(transformers, name)._from_config(config)
            )
    except Exception as error:  # A config from anywhere can fail in any way.
        raise BackboneError(
            f"backbone {str(source)!r}: expected 'minilm', a folder with a config.json or a hub "
            f"id; {loading_fault(error)}"
        ) from error
    return model.eval()


def loading_fault(error: Exception) -> str:
    """Why transformers could not load a checkpoint, in one line."""
    text = str(error).strip()
    if "trust_remote_code" in text:
        # transformers advises to allow the code. No setting of pidep does.
        return (
            "it holds Python code of its own, which pidep does not run; use an architecture that "
            "transformers has"
        )
    return (text.splitlines() or [type(error).__name__])[0]


def device_of(model: nn.Module) -> torch.device:
    """Where a model's parameters are; the host for one without parameters."""
    first = next(model.parameters(), None)
    return torch.device("cpu") if first is None else first.device


def device_name(model: nn.Module) -> str:
    """Where a model's parameters are, with the name of the GPU, for records."""
    device = device_of(model)
    name = f" ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else ""
    return f"{device}{name}"


def parameters_of(model: nn.Module) -> int:
    """Number of parameters of a backbone; tied ones count once."""
    return sum(parameter.numel() for parameter in model.parameters())
