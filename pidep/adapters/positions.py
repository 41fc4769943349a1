"""How a model looks up token positions: tables of learned positions, and rotary embeddings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from pidep.adapters.site import Undo
from pidep.errors import ExpertError

__all__ = ["check_room", "shift"]

_TABLES = ("position_embeddings", "position_embedding", "wpe", "embed_positions")


def shift(model: nn.Module, by: int) -> Undo:
    """Move every token `by` positions, behind as many virtual ones. Relative positions stay."""
    hooks: list[Any] = []
    # Tables that are moved by their offset are remembered apart: a hook is removed, an offset is
    # put back.
    moved: list[Any] = []
    for table in _tables(model):
        hooks.append(table.register_forward_pre_hook(_checked(_room(table), by)))
        if _has_offset(table):  # OPT and BART look up `position + offset`.
            table.offset += by
            moved.append(table)
        else:
            hooks.append(
                table.register_forward_pre_hook(
                    lambda _, arguments: (arguments[0] + by, *arguments[1:])
                )
            )
    for module in model.modules():
        # By class name: every model of transformers has a class of its own for it.
        if type(module).__name__.endswith("RotaryEmbedding"):
            hooks.append(module.register_forward_pre_hook(_later(by), with_kwargs=True))

    def back() -> None:
        for hook in hooks:
            hook.remove()
        for table in moved:
            table.offset -= by

    return back


def check_room(model: nn.Module, *, length: int, added: int) -> None:
    """Refuse texts that do not fit behind `added` virtual tokens.

    Raises:
        ExpertError: the model has no position for the last token.
    """
    for table in _tables(model):
        _check(_room(table), length, added)


def _tables(model: nn.Module) -> Iterator[Any]:
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and name.rpartition(".")[2] in _TABLES:
            yield module


def _has_offset(table: nn.Module) -> bool:
    return isinstance(getattr(table, "offset", None), int)


def _room(table: Any) -> int:
    """Number of tokens that the table has positions for."""
    if _has_offset(table):
        return int(table.num_embeddings - table.offset)
    # RoBERTa's positions begin behind its padding index.
    return int(table.num_embeddings - (0 if table.padding_idx is None else table.padding_idx + 1))


def _check(room: int, length: int, added: int) -> None:
    # An export serves every length up to the maximum; a comparison would fix the length.
    if not torch.compiler.is_compiling() and length + added > room:
        raise ExpertError(
            f"texts of {length} tokens behind {added} virtual ones: the backbone has {room} "
            "positions; "
            f"cut texts at {max(room - added, 0)} tokens (max_length)"
        )


def _checked(room: int, by: int) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    return lambda _, arguments: _check(room, arguments[0].shape[-1], by)


def _later(by: int) -> Any:
    def hook(
        _: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The `position_ids` of `(x, position_ids, …)`, positional or by name."""
        if isinstance(options.get("position_ids"), Tensor):
            return arguments, {**options, "position_ids": options["position_ids"] + by}
        return (arguments[0], arguments[1] + by, *arguments[2:]), options

    return hook
