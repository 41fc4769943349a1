"""What only running a backbone tells about it: two forward passes on next to nothing, once a model; they work on the meta device."""

from __future__ import annotations

import inspect
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from pidep.adapters.attention import route
from pidep.adapters.dense import is_dense

__all__ = ["ForwardFacts", "forward_facts"]

_CACHE: WeakKeyDictionary[nn.Module, ForwardFacts] = WeakKeyDictionary()
_TOKENS = 5


@dataclass(frozen=True)
class ForwardFacts:
    """Names of modules, and what goes through them."""

    keys_and_values: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Attention layers that use transformers' attention interface, with heads × head_dim of their keys and of their values."""
    patches: Mapping[str, int] = field(default_factory=dict)
    """Modules that turn images into a plain row of patches `[B, N, D]`, with D."""
    apart: frozenset[str] | None = None
    """Layers whose input `[B·n, …, in]` grows with the batch, so that its rows can be told apart; None when nobody knows."""
    idle: frozenset[str] = frozenset()
    """Layers that a forward pass on everything the backbone reads does not call: an expert there would do nothing."""
    problem: str = ""
    """Why the backbone could not be run, if it could not."""


def forward_facts(model: nn.Module) -> ForwardFacts:
    """The layout of a bare backbone, remembered."""
    if model not in _CACHE:
        _CACHE[model] = _probe(model)
    return _CACHE[model]


def _probe(model: nn.Module) -> ForwardFacts:
    problem = "it takes no input_ids and no pixel_values"
    for attempt in _attempts(model):
        try:
            with torch.random.fork_rng(devices=[]):  # ViLT draws the order of its patches
                one, two = (_run(model, attempt, batch=batch) for batch in (1, 2))
        except Exception as error:  # whatever a backbone of unknown making raises: it only means that nobody knows
            problem = (str(error).splitlines() or [type(error).__name__])[0]
            continue
        apart = frozenset(name for name, rows in one.rows.items() if [2 * count for count in rows] == two.rows.get(name))
        idle = frozenset(name for name, module in model.named_modules() if _is_counted(module)) - one.rows.keys()
        return ForwardFacts(one.keys_and_values, one.patches, apart, idle if attempt.is_whole else frozenset())
    return ForwardFacts(problem=problem)


@dataclass(frozen=True)
class _Attempt:
    """Inputs of a batch of one."""

    inputs: Mapping[str, Tensor]
    pixels: Tensor | None = None
    """Images that go in apart from the texts, where a text would need as many places for them as nobody knows."""
    is_whole: bool = True
    """Whether everything the backbone reads is there."""


@dataclass
class _Seen:
    keys_and_values: dict[str, tuple[int, int]] = field(default_factory=dict)
    patches: dict[str, int] = field(default_factory=dict)
    rows: dict[str, list[int]] = field(default_factory=dict)
    """Length of the first axis, one for each call."""


_NOW: list[tuple[dict[int, str], _Seen]] = []
"""Names of the modules of the model being run and what was seen: the attention function is registered once for all models."""


def _run(model: Any, attempt: _Attempt, *, batch: int) -> _Seen:
    seen, names = _Seen(), {id(module): name for name, module in model.named_modules()}
    modes = {module: module.training for module in model.modules()}
    with _watched(model, seen):
        _NOW.append((names, seen))
        back = route(model, "pidep_probe", _look)
        try:
            model.eval()
            with torch.no_grad():
                model(**{name: torch.cat([value] * batch) for name, value in attempt.inputs.items()})
                if attempt.pixels is not None:
                    model.get_image_features(torch.cat([attempt.pixels] * batch))
        finally:
            back()
            _NOW.pop()
            for module, training in modes.items():
                module.training = training
    return seen


def _look(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Note the layer, and answer with zeros of the right shape."""
    names, seen = _NOW[-1]
    # caps on the scores and attention sinks are not part of scaled_dot_product_attention; the keys of attention from channel to
    # channel (Florence-2's) are as wide as the image has tokens, so that a prefix would fit images of one size
    if options.get("softcap") is None and options.get("s_aux") is None and "Channel" not in type(module).__name__:
        seen.keys_and_values[names[id(module)]] = (key.shape[1] * key.shape[3], value.shape[1] * value.shape[3])
    batch, heads, length, _size = query.shape
    return value.new_zeros(batch, length, heads, value.shape[3]), None


@contextmanager
def _watched(model: nn.Module, seen: _Seen) -> Iterator[None]:
    hooks = []
    for name, module in model.named_modules():
        if _is_counted(module):

            def count(_: nn.Module, arguments: tuple[Any, ...], *, name: str = name) -> None:
                if arguments and isinstance(arguments[0], Tensor):
                    seen.rows.setdefault(name, []).append(len(arguments[0]))

            hooks.append(module.register_forward_pre_hook(count))
        elif name.rpartition(".")[2] == "embeddings":

            def measure(_: nn.Module, arguments: tuple[Any, ...], output: Any, *, name: str = name) -> None:
                image = arguments and isinstance(arguments[0], Tensor) and arguments[0].dim() == 4
                if image and isinstance(output, Tensor) and output.dim() == 3:
                    seen.patches[name] = output.shape[2]

            hooks.append(module.register_forward_hook(measure))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _is_counted(module: nn.Module) -> bool:
    return is_dense(module) or isinstance(module, nn.LayerNorm)


def _attempts(model: nn.Module) -> Iterator[_Attempt]:
    """What to run the model on, the fullest first."""
    takes = inspect.signature(model.forward).parameters
    texts, images = _texts(model, takes), _images(model, takes)
    if texts and images:
        yield _Attempt({**texts, **images})
        if hasattr(model, "get_image_features"):  # Florence-2
            yield _Attempt(texts, images["pixel_values"])
        if "image_embeds" in takes:  # ViLT, whose patches depend on the values of a mask: on the meta device there are none
            config: Any = model.config
            patches = torch.zeros(1, _TOKENS, config.hidden_size, device=images["pixel_values"].device, dtype=images["pixel_values"].dtype)
            yield _Attempt({**texts, "image_embeds": patches, "pixel_mask": torch.ones_like(patches[..., 0], dtype=torch.long)})
    for part in (texts, images):
        if part:
            yield _Attempt(part, is_whole=not (texts and images))


def _texts(model: nn.Module, takes: Container[str]) -> dict[str, Tensor]:
    if "input_ids" not in takes:
        return {}
    device = next(model.parameters(), torch.empty(0)).device
    texts = {"input_ids": torch.zeros(1, _TOKENS, dtype=torch.long, device=device)}
    if "attention_mask" in takes:
        texts["attention_mask"] = torch.ones_like(texts["input_ids"])
    if "decoder_input_ids" in takes:
        texts["decoder_input_ids"] = texts["input_ids"][:, :2]
    return texts


def _images(model: nn.Module, takes: Container[str]) -> dict[str, Tensor]:
    if "pixel_values" not in takes:
        return {}
    first = next(model.parameters(), torch.empty(0))
    config: Any = getattr(model, "config", None)
    config = getattr(config, "vision_config", getattr(config, "image_config", config))  # FLAVA's is the second
    size = getattr(config, "image_size", 224)
    height, width = size if isinstance(size, list | tuple) else (size, size)
    return {"pixel_values": torch.zeros(1, getattr(config, "num_channels", 3), height, width, device=first.device, dtype=first.dtype)}
