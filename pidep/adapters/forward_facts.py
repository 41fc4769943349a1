"""Facts about a model that only a forward pass reveals: two dummy passes, cached per model.

The passes also work on the meta device, without weights.
"""

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

# Weak, so that the cache does not keep a backbone in memory that nobody else uses.
_CACHE: WeakKeyDictionary[nn.Module, ForwardFacts] = WeakKeyDictionary()
_TOKENS = 5


@dataclass(frozen=True)
class ForwardFacts:
    """What two dummy passes revealed, by module name."""

    keys_and_values: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Attention layers that use transformers' interface, with heads × head_dim of keys and of
    values.
    """
    patches: Mapping[str, int] = field(default_factory=dict)
    """Modules that turn an image into a row of patches `[B, N, D]`, with D."""
    apart: frozenset[str] | None = None
    """Layers whose input `[B·n, …, in]` grows with the batch, so that rows can be told apart. None
    where no pass ran.
    """
    idle: frozenset[str] = frozenset()
    """Layers that no forward pass calls. An expert there would do nothing."""
    together: tuple[tuple[str, ...], ...] = ()
    """Dense layers that read the very same input, such as a layer's query, key and value."""
    problem: str = ""
    """The reason why the model could not be run; empty if it could."""


def forward_facts(model: nn.Module) -> ForwardFacts:
    """The facts about a bare backbone, cached."""
    if model not in _CACHE:
        _CACHE[model] = _probe(model)
    return _CACHE[model]


def _probe(model: nn.Module) -> ForwardFacts:
    problem = "it takes no input_ids and no pixel_values"
    for attempt in _attempts(model):
        try:
            # ViLT shuffles its patches; the caller's random state must not change.
            with torch.random.fork_rng(devices=[]):
                one, two = (_run(model, attempt, batch=batch) for batch in (1, 2))
        # An unknown backbone may raise anything. It only means that this attempt tells nothing.
        except Exception as error:
            problem = (str(error).splitlines() or [type(error).__name__])[0]
            continue
        # Exactly twice as long with two samples: the first axis is the batch, or the batch times a
        # constant.
        apart = frozenset(
            name
            for name, rows in one.rows.items()
            if [2 * count for count in rows] == two.rows.get(name)
        )
        idle = (
            frozenset(name for name, module in model.named_modules() if _is_counted(module))
            - one.rows.keys()
        )
        return ForwardFacts(
            one.keys_and_values,
            one.patches,
            apart,
            idle if attempt.is_whole else frozenset(),
            _together(one),
        )
    return ForwardFacts(problem=problem)


def _together(seen: _Seen) -> tuple[tuple[str, ...], ...]:
    """Layers that were called once, and with one and the same input."""
    layers: dict[int, list[str]] = {}
    for name, inputs in seen.inputs.items():
        if len(inputs) == 1:
            layers.setdefault(id(inputs[0]), []).append(name)
    return tuple(tuple(names) for names in layers.values() if len(names) > 1)


@dataclass(frozen=True)
class _Attempt:
    """Inputs for a batch of one."""

    inputs: Mapping[str, Tensor]
    pixels: Tensor | None = None
    """Images for a call of their own, where a text would need an unknown number of image tokens."""
    is_whole: bool = True
    """Whether the attempt feeds every modality that the backbone reads."""


@dataclass
class _Seen:
    keys_and_values: dict[str, tuple[int, int]] = field(default_factory=dict)
    patches: dict[str, int] = field(default_factory=dict)
    rows: dict[str, list[int]] = field(default_factory=dict)
    """Length of the first axis at each call."""
    inputs: dict[str, list[Tensor]] = field(default_factory=dict)
    """Inputs of dense layers. Kept, because the id of a freed tensor is given away again."""


_NOW: list[tuple[dict[int, str], _Seen]] = []
"""Module names of the running model, and what its layers saw. The attention function is registered
once for all models, so it finds the model here.
"""


def _run(model: Any, attempt: _Attempt, *, batch: int) -> _Seen:
    seen, names = _Seen(), {id(module): name for name, module in model.named_modules()}
    modes = {module: module.training for module in model.modules()}
    with _watched(model, seen):
        _NOW.append((names, seen))
        back = route(model, "pidep_probe", _look)
        try:
            # Dropout would draw random numbers, and batch statistics would change the model.
            model.eval()
            with torch.no_grad():
                model(
                    **{name: torch.cat([value] * batch) for name, value in attempt.inputs.items()}
                )
                if attempt.pixels is not None:
                    model.get_image_features(torch.cat([attempt.pixels] * batch))
        finally:
            back()
            _NOW.pop()
            for module, training in modes.items():
                module.training = training
    return seen


def _look(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Note the layer and answer with zeros of the right shape."""
    names, seen = _NOW[-1]
    # Score caps and attention sinks are not part of scaled_dot_product_attention. Florence-2's
    # channel attention has keys as wide as the image has tokens, so a prefix would fit one image
    # size only.
    if (
        options.get("softcap") is None
        and options.get("s_aux") is None
        and "Channel" not in type(module).__name__
    ):
        seen.keys_and_values[names[id(module)]] = (
            key.shape[1] * key.shape[3],
            value.shape[1] * value.shape[3],
        )
    batch, heads, length, _size = query.shape
    # The shapes alone matter here, so the attention itself is not computed.
    return value.new_zeros(batch, length, heads, value.shape[3]), None


@contextmanager
def _watched(model: nn.Module, seen: _Seen) -> Iterator[None]:
    hooks = []
    for name, module in model.named_modules():
        if _is_counted(module):

            def count(layer: nn.Module, arguments: tuple[Any, ...], *, name: str = name) -> None:
                if arguments and isinstance(arguments[0], Tensor):
                    seen.rows.setdefault(name, []).append(len(arguments[0]))
                    if is_dense(layer):
                        seen.inputs.setdefault(name, []).append(arguments[0])

            hooks.append(module.register_forward_pre_hook(count))
        elif name.rpartition(".")[2] == "embeddings":

            def measure(
                _: nn.Module, arguments: tuple[Any, ...], output: Any, *, name: str = name
            ) -> None:
                # An image has four axes, `[B, C, H, W]`. Word embeddings of the same name read two.
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
    """Inputs to try, the most complete first."""
    takes = inspect.signature(model.forward).parameters
    texts, images = _texts(model, takes), _images(model, takes)
    if texts and images:
        yield _Attempt({**texts, **images})
        # Florence-2 reads images through a call of its own.
        if hasattr(model, "get_image_features"):
            yield _Attempt(texts, images["pixel_values"])
        # ViLT selects patches by the values of a mask, and the meta device has no values.
        if "image_embeds" in takes:
            config: Any = model.config
            patches = torch.zeros(
                1,
                _TOKENS,
                config.hidden_size,
                device=images["pixel_values"].device,
                dtype=images["pixel_values"].dtype,
            )
            yield _Attempt(
                {
                    **texts,
                    "image_embeds": patches,
                    "pixel_mask": torch.ones_like(patches[..., 0], dtype=torch.long),
                }
            )
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
    # FLAVA calls it image_config.
    config = getattr(config, "vision_config", getattr(config, "image_config", config))
    size = getattr(config, "image_size", 224)
    height, width = size if isinstance(size, list | tuple) else (size, size)
    return {
        "pixel_values": torch.zeros(
            1,
            getattr(config, "num_channels", 3),
            height,
            width,
            device=first.device,
            dtype=first.dtype,
        )
    }
