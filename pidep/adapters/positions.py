"""How a model looks up token positions: tables of learned positions, and rotary embeddings."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from pidep.adapters.site import Undo
from pidep.errors import ExpertError

__all__ = ["check_room", "default_positions", "room_of", "shift", "shift_rows", "text_reader"]

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


def shift_rows(model: nn.Module, by: Callable[[], Tensor | None]) -> Undo:
    """Move every token by its own row's number of positions.

    Args:
        by: gives the numbers `[B, 1]` int64 of the running pass; None moves nothing.

    Raises:
        ExpertError: the model does not take `position_ids`.
    """
    reader = text_reader(model)
    names = list(inspect.signature(reader.forward).parameters)

    def hook(
        _: nn.Module, arguments: tuple[Any, ...], given: dict[str, Any]
    ) -> tuple[tuple[()], dict[str, Any]]:
        options = {**dict(zip(names, arguments, strict=False)), **given}
        numbers = by()
        if numbers is not None:
            positions = options.get("position_ids")
            if positions is None:
                tokens = options.get("input_ids")
                tokens = options["inputs_embeds"] if tokens is None else tokens
                positions = default_positions(reader, tokens.shape[1], tokens.device)
            options["position_ids"] = positions + numbers
        return (), options

    handle = reader.register_forward_pre_hook(hook, with_kwargs=True)
    return lambda: handle.remove()


def default_positions(reader: nn.Module, count: int, device: torch.device) -> Tensor:  # [1, T]
    """The position ids of `count` tokens, as the model makes them where none are given."""
    first = max((_first(table) for table in _tables(reader)), default=0)
    return (torch.arange(count, device=device) + first).unsqueeze(0)


def text_reader(model: nn.Module, embeddings: str | None = None) -> nn.Module:
    """The innermost model around the word embeddings that takes explicit positions.

    Args:
        embeddings: name of the word embeddings; the model's own when absent.

    Raises:
        ExpertError: there is none.
    """
    if embeddings is None:
        try:
            words = model.get_input_embeddings()  # type: ignore[operator]
        except (AttributeError, NotImplementedError):
            words = None
        embeddings = next((name for name, part in model.named_modules() if part is words), "")
    parts = embeddings.split(".")
    for end in range(len(parts) - 1, -1, -1):
        module = model.get_submodule(".".join(parts[:end]))
        takes = set(inspect.signature(module.forward).parameters)
        if (
            {"inputs_embeds", "attention_mask", "position_ids"} <= takes
            and hasattr(module, "get_input_embeddings")
            and not any(_has_offset(table) for table in _tables(module))
        ):
            return module
    raise ExpertError(
        f"bank: {type(model).__name__} takes no position ids, so rows with virtual tokens and rows "
        "without cannot share a batch; export the expert with `form=merged`"
    )


def check_room(model: nn.Module, *, length: int, added: int) -> None:
    """Refuse texts that do not fit behind `added` virtual tokens.

    Raises:
        ExpertError: the model has no position for the last token.
    """
    for table in _tables(model):
        _check(_room(table), length, added)


def room_of(model: nn.Module) -> int | None:
    """Tokens that the smallest table of learned positions holds; None without one."""
    return min(map(_room, _tables(model)), default=None)


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
    return int(table.num_embeddings) - _first(table)


def _first(table: Any) -> int:
    """Position of the first token. RoBERTa's positions begin behind its padding index."""
    return 0 if table.padding_idx is None else int(table.padding_idx) + 1


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
