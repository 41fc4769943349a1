"""The two graphs of an encoder-decoder: keys and values of a row, and the next token.

Both have a merged form, with one expert in the weights, and a bank form, with experts as inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pidep.adapters.bank import attached_bank, bank_layout
from pidep.adapters.bank_rows import BankLayout, BankRows, bank_rows
from pidep.adapters.fold import folded_or_attached
from pidep.artifacts import names
from pidep.backbones.backbone import Backbone
from pidep.backbones.halves import Halves
from pidep.experts.bank import BankGroup, pack
from pidep.experts.folder import Expert
from pidep.export.graph import copied
from pidep.export.program import Signature, save_graph, to_onnx

__all__ = ["export_sequence_bank", "export_sequence_merged"]

_ROWS, _SEQUENCES, _TOKENS, _PAST = 3, 6, 3, 4
"""Sizes of the example: several of each, because torch.export fixes an axis of size 1."""


@dataclass(frozen=True)
class _Acting:
    """Experts as further arguments of a half."""

    layout: BankLayout
    arguments: dict[str, Any]
    dynamic: dict[str, Any]
    inputs: list[str]


class _EveryNumber:
    """In the place of `torch.isfinite`: all numbers are finite."""

    def all(self) -> bool:
        return True


class _Unclamped(TorchFunctionMode):
    """Inside, no module asks whether its numbers have overflown.

    BART and its relatives ask in fp16, and clamp those that have. A graph has no such branch: the
    gate refuses an expert whose numbers overflow.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is torch.isfinite:
            return _EveryNumber()
        return func(*args, **(kwargs or {}))


class _Half(nn.Module):
    """One of the halves in fp16, as a straight line of operations."""

    def __init__(self, half: nn.Module) -> None:
        super().__init__()
        self.body = half

    def forward(self, arguments: Mapping[str, Any]) -> Any:
        with _Unclamped():
            return self.body(**arguments)


class _Banked(nn.Module):
    """A half whose rows have experts of their own."""

    def __init__(self, half: nn.Module, layout: BankLayout, *, in_fp16: bool) -> None:
        super().__init__()
        self.body = half
        self.layout = layout
        self._in_fp16 = in_fp16

    def forward(
        self,
        arguments: Mapping[str, Any],
        slots: Tensor,
        weights: Tensor,
        factors: Sequence[Tensor],
    ) -> Any:
        first = next(iter(arguments.values()))
        like = next(iter(first.values())) if isinstance(first, Mapping) else first
        rows = BankRows(self.layout, factors, slots, weights, like=like)
        with bank_rows(rows), _Unclamped() if self._in_fp16 else nullcontext():
            return self.body(**arguments)


def export_sequence_merged(
    backbone: Backbone,
    expert: Expert,
    folder: Path,
    *,
    opset: int,
    half: bool = False,
    beside: bool = False,
) -> None:
    """Write `encoder.onnx` and `decoder.onnx` with one expert in them.

    The encoder's inputs are those of `Halves.example`, its outputs `cross_key_N` and
    `cross_value_N` [B, heads, S, head_dim] of each decoder layer. The decoder takes these,
    `decoder_ids` [B, T] and `parents` [B] int64, `attention_mask` [B, S] int64, and `past_key_N`
    and `past_value_N` [P, heads, N, head_dim]; it gives `logits` [B, T, vocabulary] fp32, `key_N`
    and `value_N` [B, heads, N + T, head_dim].

    Args:
        half: whether the backbone computes in fp16. Then all keys and values are fp16, too.
        beside: whether the weights are in `<path>.data`. Weights of 2 GiB always are.

    Raises:
        PidepError: the exporter cannot translate the backbone.
    """
    if half:
        backbone = copied(backbone)
    with folded_or_attached(backbone.model, expert.sites, kind=expert.kind, scaling=expert.scaling):
        # Folded in fp32, then cast: the sum of weight and expert is rounded once.
        if half:
            backbone.model.half()
        for name, part, signature in _halves(backbone):
            if half:
                part, signature = _Half(part), _packed(signature)
            program = to_onnx(part, signature, opset=opset, form=f"merged {name}")
            save_graph(program.model, folder / name, beside=beside)


def export_sequence_bank(
    backbone: Backbone,
    groups: Sequence[BankGroup],
    path: Path,
    *,
    opset: int,
    half: bool = False,
    beside: bool = False,
) -> None:
    """Write one of the two graphs, that of `path`'s name, with experts as inputs.

    Inputs and outputs as those of `export_sequence_merged`, and experts as in
    `export_bank_graph`.

    Args:
        half: as `export_sequence_merged`. Then experts are inputs in fp16, too.
        beside: as `export_sequence_merged`.

    Raises:
        PidepError: the exporter cannot translate the backbone.
    """
    if half:
        backbone = copied(backbone)
        backbone.model.half()
    acting = _acting(backbone, groups, half=half)
    with attached_bank(backbone.model, groups):
        for name, part, signature in _halves(backbone, acting):
            if name == path.name:
                banked = _Banked(part, acting.layout, in_fp16=half)
                program = to_onnx(
                    banked, _with(signature, acting), opset=opset, form=f"bank {name}"
                )
                save_graph(program.model, path, beside=beside)


def _acting(backbone: Backbone, groups: Sequence[BankGroup], *, half: bool) -> _Acting:
    """Two rows in `slots` where a batch has others, as in a batch of one expert."""
    layout = bank_layout(backbone.model, groups)
    factors = [torch.from_numpy(pack(group, [None] * 4)) for group in groups]
    if half:
        factors = [factor.half() for factor in factors]
    slots = torch.zeros((2, 5), dtype=torch.int64)
    weights = torch.zeros((2, 5, len(layout.sites)))
    some, mixed, count = map(torch.export.Dim, ("some", "mixed", "experts"))
    return _Acting(
        layout,
        {names.GRAPH_SLOTS: slots, names.GRAPH_WEIGHTS: weights, "factors": factors},
        {
            names.GRAPH_SLOTS: {0: some, 1: mixed},
            names.GRAPH_WEIGHTS: {0: some, 1: mixed},
            "factors": [{0: count} for _ in groups],
        },
        [names.GRAPH_SLOTS, names.GRAPH_WEIGHTS, *(group.input for group in groups)],
    )


def _packed(signature: Signature) -> Signature:
    """The signature of a module that takes another one's arguments as a mapping."""
    arguments, dynamic = {"arguments": signature.arguments}, {"arguments": signature.dynamic}
    return Signature(arguments, dynamic, signature.inputs, signature.outputs)


def _with(signature: Signature, acting: _Acting) -> Signature:
    packed = _packed(signature)
    return Signature(
        {**packed.arguments, **acting.arguments},
        {**packed.dynamic, **acting.dynamic},
        [*packed.inputs, *acting.inputs],
        packed.outputs,
    )


def _halves(
    backbone: Backbone, acting: _Acting | None = None
) -> Iterator[tuple[str, nn.Module, Signature]]:
    """Name, module and signature of each graph, while the experts are attached."""
    halves = _halves_of(backbone)
    inputs, axes = halves.example, halves.dynamic
    with torch.no_grad(), _idle(acting):
        cross = halves.encoder(inputs)
    layers = range(len(cross) // 2)
    named = [f"cross_{what}_{at}" for at in layers for what in ("key", "value")]
    signature = Signature({"inputs": inputs}, {"inputs": axes}, list(inputs), named)
    yield names.ENCODER_GRAPH, halves.encoder, signature
    yield names.DECODER_GRAPH, halves.decoder, _decoder_signature(halves, cross, named)


def _halves_of(backbone: Backbone) -> Halves:
    found = backbone.halves
    assert found is not None, "the caller knows that it does not embed"
    return found


@contextmanager
def _idle(acting: _Acting | None) -> Iterator[None]:
    """Inside, bank sites have the bare backbone's rows, so that an example can be run."""
    if acting is None:
        yield
        return
    slots, weights = (
        torch.zeros((1, 1), dtype=torch.int64),
        torch.zeros(1, 1, len(acting.layout.sites)),
    )
    factors = acting.arguments["factors"]
    with bank_rows(BankRows(acting.layout, factors, slots, weights, like=torch.zeros(_ROWS, 1))):
        yield


def _decoder_signature(halves: Halves, cross: Sequence[Tensor], named: Sequence[str]) -> Signature:
    times = _SEQUENCES // _ROWS
    seen = torch.cat([halves.example["attention_mask"]] * times)
    others = [torch.cat([one] * times) for one in cross]
    past = [one.new_zeros(_SEQUENCES - 1, one.shape[1], _PAST, one.shape[3]) for one in cross]
    arguments = {
        "ids": torch.full((_SEQUENCES, _TOKENS), halves.special.start),
        "mask": seen,
        "cross": others,
        "past": past,
        "parents": torch.zeros(_SEQUENCES, dtype=torch.int64),
    }
    room = halves.positions or 512
    batch, parents = torch.export.Dim("sequences"), torch.export.Dim("parents")
    tokens, before = torch.export.Dim("tokens", max=room), torch.export.Dim("past", max=room)
    length = torch.export.Dim("length", max=room)
    # A prompt's virtual tokens stand before the text in the encoder's states.
    wider = cross[0].shape[2] - seen.shape[1]
    dynamic = {
        "ids": {0: batch, 1: tokens},
        "mask": {0: batch, 1: length},
        "cross": [{0: batch, 2: length + wider if wider else length} for _ in cross],
        "past": [{0: parents, 2: before} for _ in cross],
        "parents": {0: batch},
    }
    pasts = [name.replace("cross_", "past_") for name in named]
    return Signature(
        arguments,
        dynamic,
        ["decoder_ids", "attention_mask", *named, *pasts, "parents"],
        [names.GRAPH_LOGITS, *(name.removeprefix("cross_") for name in named)],
    )
