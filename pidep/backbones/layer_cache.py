"""Caches the hidden states below the first site. Frozen layers give each row the same states."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["LayerCache", "layers_below"]

Prepare = Callable[[list[int]], tuple[Tensor, Callable[[], object]]]
"""`(row numbers) -> (attention mask [M, T], function that runs the model)`."""


class _Enough(Exception):
    """Ends a forward pass early: the wanted hidden states are known."""


class _Given(nn.Module):
    """Replaces a lower layer. It ignores its input and returns the cached hidden states."""

    def __init__(self, hidden: Tensor, *, as_tuple: bool) -> None:
        super().__init__()
        self.hidden, self.as_tuple = hidden, as_tuple

    def forward(self, *_: Any, **__: Any) -> Tensor | tuple[Tensor]:
        return (self.hidden,) if self.as_tuple else self.hidden


def layers_below(model: nn.Module, sites: Sequence[str]) -> tuple[str, int]:
    """Name of the stack that holds every site, and the number of layers below them.

    ("", 0) when there is none below.
    """
    stacks = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) > 1
    ]
    for stack in stacks:
        if sites and all(site.startswith(f"{stack}.") for site in sites):
            return stack, min(int(site[len(stack) + 1 :].split(".")[0]) for site in sites)
    return "", 0


class LayerCache:
    """Hidden states `[T, D]` that enter layer `depth`, by row and cut.

    At most `max_bytes` in all.
    """

    def __init__(
        self, model: nn.Module, stack: str, depth: int, *, max_bytes: int = 4 * 2**30
    ) -> None:
        self._model, self._stack, self._depth = model, stack, depth
        self._kept: dict[Hashable, Tensor] = {}
        self._left = max_bytes
        self._as_tuple = False

    @classmethod
    def below(cls, model: nn.Module, sites: Sequence[str]) -> LayerCache | None:
        """A cache of the layers below the first site; None when there are none."""
        stack, depth = layers_below(model, sites)
        return cls(model, stack, depth) if depth else None

    def last_hidden(self, keys: Sequence[Hashable], prepare: Prepare) -> tuple[Tensor, Tensor]:
        """The model's last hidden states `[B, T, D]` and their mask `[B, T]`.

        In each row, attended tokens come first, then padding.
        """
        hidden, mask = self._hidden(keys, prepare)
        with self._in_place(hidden):
            # The ids do not matter: the layers that read them are replaced.
            return self._model(input_ids=mask, attention_mask=mask).last_hidden_state, mask

    def _hidden(self, keys: Sequence[Hashable], prepare: Prepare) -> tuple[Tensor, Tensor]:
        missing = [row for row, key in enumerate(keys) if key not in self._kept]
        fresh: dict[int, Tensor] = {}
        if missing:
            mask, run = prepare(missing)
            for row, states, seen in zip(missing, self._run_below(run), mask.bool(), strict=True):
                fresh[row] = states[seen]  # a copy
                size = fresh[row].numel() * fresh[row].element_size()
                # A full cache keeps what it has: eviction would make long epochs miss every time.
                if size <= self._left:
                    self._kept[keys[row]], self._left = fresh[row], self._left - size
        rows = [fresh[row] if row in fresh else self._kept[key] for row, key in enumerate(keys)]
        mask = nn.utils.rnn.pad_sequence(
            [torch.ones(len(row), dtype=torch.int64, device=row.device) for row in rows],
            batch_first=True,
        )
        # Kept without padding: the next batch may have other neighbours and another length.
        return nn.utils.rnn.pad_sequence(rows, batch_first=True), mask

    def _run_below(self, run: Callable[[], object]) -> Tensor:
        found: list[Tensor] = []

        def take(_: nn.Module, arguments: tuple[Any, ...]) -> None:
            found.append(arguments[0])
            # An exception is the only way out of a forward pass from within a hook.
            raise _Enough

        def note(_: nn.Module, __: Any, output: Any) -> None:
            self._as_tuple = isinstance(output, tuple)

        layers = self._model.get_submodule(self._stack)
        assert isinstance(layers, nn.ModuleList)
        hooks = [
            layers[self._depth].register_forward_pre_hook(take),
            layers[self._depth - 1].register_forward_hook(note),
        ]
        try:
            # Plain no_grad: tensors made in inference mode could not enter a graph later.
            with torch.no_grad():
                run()
        except _Enough:
            pass
        finally:
            for hook in hooks:
                hook.remove()
        return found[0]

    @contextmanager
    def _in_place(self, hidden: Tensor) -> Iterator[None]:
        """Inside, the lower layers are replaced by their cached result, for one forward pass."""
        layers = self._model.get_submodule(self._stack)
        assert isinstance(layers, nn.ModuleList)
        given = _Given(hidden, as_tuple=self._as_tuple)
        self._model.set_submodule(
            self._stack, nn.ModuleList([given] * self._depth + list(layers[self._depth :]))
        )
        try:
            yield
        finally:
            self._model.set_submodule(self._stack, layers)
