"""An encoder-decoder as two modules of tensors alone, which is what a graph can be made of.

The encoder half gives the keys and values that the decoder's cross-attention reads, once a row. The
decoder half continues sequences whose own keys and values it was given, and gives theirs back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:  # `seq2seq` gives its own halves.
    from pidep.backbones.seq2seq import ModelCalls, Special

__all__ = ["DecoderHalf", "EncoderHalf", "Halves"]


@dataclass(frozen=True)
class Halves:
    """The modules, with what is said about them where no torch is."""

    encoder: EncoderHalf
    decoder: DecoderHalf
    example: dict[str, Tensor]
    """Inputs of the encoder for three rows."""
    dynamic: dict[str, dict[int, Any]]
    """Which axes of the inputs are dynamic, as `torch.export` takes it."""
    special: Special
    positions: int | None
    """Tokens that both have room for; None where positions are relative."""
    image_token: int | None = None
    """Stands for one visual token at the beginning of a row; None where no image is read."""
    task_words: Mapping[str, str] | None = None
    """A task word to the sentence that it stands for."""
    sight: tuple[str, ...] = ()
    """Where the names of modules begin that only images pass."""


class EncoderHalf(nn.Module):
    """Rows to the keys and values of cross-attention."""

    def __init__(self, calls: ModelCalls) -> None:
        super().__init__()
        self.model = calls.model
        self._calls = calls

    def forward(self, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        """Key and value of each decoder layer, `[B, heads, S, head_dim]`.

        Args:
            inputs: as the example of `Halves`.
        """
        hidden, mask = self._calls.states(inputs)
        # One step of the decoder computes them, with whatever expert acts there. What else it
        # computes reaches no output, so the exporter drops it.
        start = torch.full_like(mask[:, :1], self._calls.special.start)
        found = self._calls.step(hidden, mask, start, None)
        return _tensors(found.past_key_values.cross_attention_cache)


class DecoderHalf(nn.Module):
    """The next token of B sequences."""

    def __init__(self, calls: ModelCalls) -> None:
        super().__init__()
        self.model = calls.model
        self._calls = calls

    def forward(
        self,
        ids: Tensor,  # [B, T] int64
        mask: Tensor,  # [B, S] int64
        cross: Sequence[Tensor],  # [B, heads, S, head_dim]
        past: Sequence[Tensor],  # [P, heads, N, head_dim]
        parents: Tensor,  # [B] int64
    ) -> tuple[Tensor, list[Tensor]]:
        """Logits `[B, T, vocabulary]` fp32, and key and value of each layer `[B, heads, N + T, …]`.

        Args:
            ids: the tokens after the past ones.
            mask: of the encoder's input.
            cross: as the encoder half gives them.
            past: keys and values of the N tokens before; N is 0 at the beginning.
            parents: which of the P sequences each one continues.
        """
        from transformers.cache_utils import DynamicCache, EncoderDecoderCache

        own, other = DynamicCache(), DynamicCache()
        for layer in range(len(past) // 2):
            key, value = (one.index_select(0, parents) for one in past[2 * layer : 2 * layer + 2])
            own.update(key, value, layer)
            other.update(cross[2 * layer], cross[2 * layer + 1], layer)
        # Its length alone is asked for: the keys and values made of it are there already.
        hidden = mask.new_zeros(
            (mask.shape[0], cross[0].shape[2], self._calls.width), dtype=cross[0].dtype
        )
        found = self._calls.step(hidden, mask, ids, EncoderDecoderCache(own, other))
        # In fp32 as they are; of a backbone in fp16, a search sums up logarithms of them.
        logits = found.logits if found.logits.dtype == torch.float32 else found.logits.float()
        return logits, _tensors(found.past_key_values.self_attention_cache)


def _tensors(cache: Any) -> list[Tensor]:
    """Key and value of each layer."""
    return [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
