"""Scores of backbones that embed: cosines with a task's label texts or with each row's
candidates.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pidep.backbones.backbone import Backbone
from pidep.inputs.row import Input, Row, row_key

__all__ = ["Choices"]


class Choices:
    """Embeddings of the answers. The bare backbone makes them; no expert changes them."""

    def __init__(self, backbone: Backbone, labels: Tensor, *, logit_scale: float) -> None:
        """`labels` `[C, D]` serve every row that has no candidates of its own."""
        self._backbone, self.labels, self._scale = backbone, labels, logit_scale
        self._known: dict[tuple[str, str], Tensor] = {}
        self._most = 0

    def learn(self, rows: Sequence[Input]) -> None:
        """Embed the rows' new candidates. Nothing may be attached to the backbone."""
        choosing = [row.candidates for row in rows if isinstance(row, Row)]
        self._most = max([self._most, *map(len, choosing)])
        wanted = {row_key(one): one for candidates in choosing for one in candidates}
        missing = {key: one for key, one in wanted.items() if key not in self._known}
        if missing:
            # Candidates are never cut at the task's max_length: serving embeds them at the model's
            # own limit.
            found = self._backbone.encode(
                list(missing.values()), max_length=self._backbone.max_positions
            )
            # Clones: tensors made in inference mode cannot be used in training.
            self._known.update(zip(missing, found.clone(), strict=True))

    def cosines(self, embeddings: Tensor, rows: Sequence[Input]) -> Tensor:
        """Cosines of `[B, D]` with each row's answers, `[B, C]`.

        C is the largest number of candidates of any row seen. Places left over are -inf.
        """
        device = embeddings.device
        own = [tuple(row.candidates) if isinstance(row, Row) else () for row in rows]
        if not any(own):
            return embeddings @ self.labels.to(device).T
        choices = [
            torch.stack([self._known[row_key(one)] for one in some]) if some else self.labels
            for some in own
        ]
        counts = torch.tensor([len(some) for some in choices])
        padded = nn.utils.rnn.pad_sequence(choices, batch_first=True)
        # Every batch has the same width, so that the batches of a split can be joined.
        padded = nn.functional.pad(
            padded, (0, 0, 0, max(self._most, len(self.labels)) - padded.shape[1])
        )
        missing = torch.arange(padded.shape[1]) >= counts.unsqueeze(1)
        cosines = torch.einsum("bcd,bd->bc", padded.to(device), embeddings)
        return cosines.masked_fill(missing.to(device), -torch.inf)

    def logits(self, rows: Sequence[Input], *, max_length: int) -> Tensor:
        """Scaled cosines `[B, C]` with gradients to the attached experts."""
        return self._scale * self.cosines(self._backbone.embed(rows, max_length=max_length), rows)

    def all_logits(self, rows: Sequence[Input], *, max_length: int) -> Tensor:
        """Scaled cosines `[N, C]` without gradients."""
        return self._scale * self.cosines(self._backbone.encode(rows, max_length=max_length), rows)
