"""Scores of encoder-decoders: logits of label texts, of each row's candidates, or of free texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pidep.inputs.row import Input, Row, size_key

if TYPE_CHECKING:  # The backbone makes its own scorer and imports this module at run time.
    from pidep.backbones.encoder_decoder import EncoderDecoder

__all__ = ["Likelihoods"]

# log p of a text that is almost certain. Beyond it, log(1 - p) is useless and its gradient
# explodes.
_SURE = -1e-5


class Likelihoods:
    """Logits whose softmax is the probability of each answer.

    Labels and candidates: log p(text | row), so that the softmax is over them alone. Free texts
    (`free`): a row's one candidate is its target. With p the geometric mean over the target's
    tokens, the logits are log p and log(1 - p). The cross-entropy at label 0 is then the target's
    mean negative log-likelihood per token.
    """

    def __init__(
        self,
        backbone: EncoderDecoder,
        label_texts: Sequence[str],
        *,
        free: bool = False,
        max_target_length: int = 32,
    ) -> None:
        self._backbone, self._label_texts = backbone, tuple(label_texts)
        self._free, self._limit = free, max_target_length
        self._most = len(self._label_texts)

    def learn(self, rows: Sequence[Input]) -> None:
        """Note the largest number of candidates, so that all batches have logits of one width."""
        self._most = max(
            [self._most, *(len(row.candidates) for row in rows if isinstance(row, Row))]
        )

    def logits(self, rows: Sequence[Input], *, max_length: int) -> Tensor:
        """`[B, C]` with gradients to the attached experts; places left over are -inf."""
        own = [
            tuple(row.candidates) if isinstance(row, Row) and row.candidates else self._label_texts
            for row in rows
        ]
        if self._free:
            mean = self._backbone.score(
                rows, own, max_length=max_length, normalise="tokens", max_target_length=self._limit
            )
            # log(1 - p) by expm1: for p near 1 the plain expression loses all digits.
            return torch.cat([mean, torch.log(-torch.expm1(mean.clamp(max=_SURE)))], 1)
        scores = self._backbone.score(rows, own, max_length=max_length)
        return nn.functional.pad(
            scores, (0, max(self._most - scores.shape[1], 0)), value=-torch.inf
        )

    def all_logits(self, rows: Sequence[Input], *, max_length: int, batch_size: int = 16) -> Tensor:
        """`[N, C]` on the host, without gradients; sorted by length, so little is padding."""
        self.learn(rows)
        order = sorted(range(len(rows)), key=lambda row: size_key(rows[row]))
        out = torch.empty(len(rows), 2 if self._free else self._most)
        with torch.inference_mode():
            for start in range(0, len(order), batch_size):
                chosen = order[start : start + batch_size]
                some = self.logits([rows[row] for row in chosen], max_length=max_length)
                out[chosen] = some.cpu()
        return out
