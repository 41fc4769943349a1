"""What backbones that embed have in common: scores are cosines with embedded answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, NoReturn

import torch
from torch import Tensor

from pidep.backbones.backbone import AnswerScorer, Candidates
from pidep.backbones.choices import Choices
from pidep.backbones.tower import Tower
from pidep.errors import BackboneError, UsageError
from pidep.inputs.row import Input, Row, as_row

__all__ = ["EmbeddingBackbone"]


class EmbeddingBackbone:
    """Mixin that completes the `Backbone` protocol for a class with `encode` and `embed`."""

    name: str
    embeds = True
    generates = False
    halves: ClassVar[None] = None
    towers: tuple[Tower, ...] = ()
    logit_scale = 20.0
    """Cosines lie within ±1. A scale of 20 lets a softmax over them become sharp, as is usual for
    contrastive losses.
    """

    def score(
        self: Any, rows: Sequence[Input], candidates: Candidates, *, max_length: int
    ) -> Tensor:
        """Cosines `[B, C]` of rows with candidates; the bare backbone reads the candidates."""
        texts = [one for one in candidates if isinstance(one, str)]
        own = [one for one in candidates if not isinstance(one, str)]
        of_rows: list[Sequence[Input]] = [texts] * len(rows) if texts and not own else list(own)
        if len(of_rows) != len(rows):
            raise UsageError(
                f"candidates: expected texts, or a list for each of {len(rows)} rows, "
                f"found {len(candidates)}"
            )
        asked = [
            Row(row.text, row.image, tuple(choices), row.where)
            for row, choices in zip(map(as_row, rows), of_rows, strict=True)
        ]
        scorer = Choices(self, torch.zeros(0, self.hidden_size), logit_scale=1.0)
        scorer.learn(asked)
        return scorer.logits(asked, max_length=max_length)

    def generate(self, rows: Sequence[Input], **_: Any) -> NoReturn:
        """Raises `BackboneError`: the backbone embeds and has no decoder."""
        raise BackboneError(
            f"backbone {self.name!r}: embeds and generates no texts; use an encoder-decoder"
        )

    def label_embeddings(self: Any, label_texts: Sequence[str]) -> Tensor:
        """`[C, D]` unit rows; no rows for a task of candidates."""
        if not label_texts:
            return torch.zeros(0, self.hidden_size)
        found: Tensor = self.encode(list(label_texts), max_length=self.max_positions)
        return found

    def answer_scorer(
        self: Any,
        label_texts: Sequence[str],
        label_embeddings: Tensor,
        *,
        logit_scale: float,
        max_answer_length: int | None = None,
    ) -> AnswerScorer:
        """Cosines with the label embeddings or each row's candidates, times the scale."""
        return Choices(self, label_embeddings, logit_scale=logit_scale)
