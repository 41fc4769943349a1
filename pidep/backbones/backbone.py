"""The one interface of backbones that embed: rows in, unit vectors out, experts attached to `model` on the way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from torch import Tensor

from pidep.inputs.row import Input

__all__ = ["Backbone"]


class Backbone(Protocol):
    """A frozen model; its experts are attached to `model`, whatever the rows hold."""

    name: str
    digest: str
    """SHA-256 over everything its answers depend on."""

    @property
    def fitting(self) -> tuple[str, ...]:
        """Digests of the backbones whose experts act here as they do there; its own is the first."""

    @property
    def model(self) -> Any:
        """The module experts are attached to."""

    @property
    def hidden_size(self) -> int:
        """D, the width of an embedding."""

    @property
    def max_positions(self) -> int:
        """Longest text, in tokens."""

    @property
    def tokenizer_json(self) -> str:
        """The tokenizer as the served model gets it."""

    @property
    def forward(self) -> Callable[..., Tensor]:
        """Named tensors, as `prepare` gives them, to unit vectors `[B, D]` fp32; what is exported."""

    def prepare(self, rows: Sequence[Input], *, max_length: int) -> dict[str, Tensor]:
        """Rows to the inputs of `forward` by name: the batch is axis 0 of each, a length axis 1."""

    def embed(self, rows: Sequence[Input], *, max_length: int) -> Tensor:
        """Rows to unit vectors `[B, D]` fp32, with gradients to whatever is attached."""

    def encode(self, rows: Sequence[Input], *, max_length: int, batch_size: int = 64) -> Tensor:
        """Rows to unit vectors `[B, D]` fp32 without gradients, batched by length."""

    def around(self, model: Any) -> Backbone:
        """The same backbone with another model in the place of `model`, and no cache."""

    def cached_below(self, sites: Sequence[str]) -> AbstractContextManager[None]:
        """Inside, layers below the first site run once a row; nothing may be attached below."""
