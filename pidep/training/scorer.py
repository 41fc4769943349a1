"""How rows of a task are scored: against embedded labels, candidates, or texts of answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from pidep.adapters.mixture import Mixture, attached
from pidep.backbones.backbone import AnswerScorer, Backbone
from pidep.backbones.label_bias import with_label_bias
from pidep.errors import TaskError
from pidep.experts.folder import Expert
from pidep.inputs.row import Input
from pidep.inputs.tokenize import Tokenize
from pidep.tasks.lengths import same_tokens
from pidep.tasks.task import Task

__all__ = [
    "Scorer",
    "label_embeddings",
    "predict_answers",
    "predict_logits",
    "scorer_for_expert",
    "scorer_for_task",
]


@dataclass(frozen=True)
class Scorer:
    """Scores rows against the texts of a task's labels, or against each row's own candidates."""

    backbone: Backbone
    label_embeddings: Tensor  # [C, D] fp32, unit rows
    """C is 0 where rows have their own candidates; D is 0 for an encoder-decoder."""
    logit_scale: float
    max_length: int
    label_texts: tuple[str, ...] = ()
    """The texts that an encoder-decoder scores."""
    max_answer_length: int | None = None
    """Most tokens of a free answer; None where rows are classified. Encoder-decoders only."""
    label_bias: tuple[float, ...] = ()
    """[C] nats, added to the labels' logits; empty for none. A task that is learned has none."""

    @cached_property
    def answers(self) -> AnswerScorer:
        """The answers that rows are scored against; embedded candidates are remembered."""
        return self.backbone.answer_scorer(
            self.label_texts,
            self.label_embeddings,
            logit_scale=self.logit_scale,
            max_answer_length=self.max_answer_length,
        )

    def logits(self, rows: Sequence[Input]) -> Tensor:
        """`[B, C]` logits, with gradients to the attached experts."""
        found = self.answers.logits(rows, max_length=self.max_length)
        return with_label_bias(found, rows, self.label_bias)

    def encoded_logits(self, rows: Sequence[Input]) -> Tensor:
        """`[N, C]` logits without gradients, for any number of rows."""
        found = self.answers.all_logits(rows, max_length=self.max_length)
        return with_label_bias(found, rows, self.label_bias)


def label_embeddings(backbone: Backbone, task: Task) -> Tensor:
    """`[C, D]` embeddings of the label texts by the bare backbone; C is 0 for candidates per row.

    They stay fixed during training, so that experts of different tasks can be mixed. D is 0 for
    an encoder-decoder, which scores the texts themselves.
    """
    return backbone.label_embeddings(list(task.labels.values()))


def scorer_for_task(
    backbone: Backbone,
    task: Task,
    *,
    max_length: int,
    max_answer_length: int | None = None,
) -> Scorer:
    """The scorer of a task that is about to be learned.

    Raises:
        TaskError: the backbone's tokenizer cannot tell the texts of two labels apart.
    """
    tokenize = Tokenize(backbone.tokenizer_json)
    twins = same_tokens(task.labels, tokenize, most=backbone.max_positions)
    if twins is not None:
        # Their scores would be equal for every row, so the first one would always win.
        raise TaskError(
            f"task {task.name!r}: the texts of the labels {twins[0]!r} and {twins[1]!r} have the "
            f"same tokens for backbone {backbone.name!r}; give them other words"
        )
    embeddings, scale = label_embeddings(backbone, task), backbone.logit_scale
    texts = tuple(task.labels.values())
    return Scorer(backbone, embeddings, scale, max_length, texts, max_answer_length)


def scorer_for_expert(backbone: Backbone, expert: Expert) -> Scorer:
    """The scorer that an expert was trained with, from what its folder keeps."""
    return Scorer(
        backbone,
        torch.from_numpy(expert.label_embeddings),
        expert.logit_scale,
        expert.max_length,
        expert.label_texts,
        expert.max_answer_length,
        expert.label_bias,
    )


def predict_logits(scorer: Scorer, rows: Sequence[Input], mixture: Mixture | None = None) -> Tensor:
    """`[N, C]` logits of a mixture, or of the bare backbone."""
    # Candidates are embedded by the bare backbone, so before anything is attached.
    scorer.answers.learn(rows)
    with attached(scorer.backbone.model, mixture):
        return scorer.encoded_logits(rows)


def predict_answers(
    scorer: Scorer, rows: Sequence[Input], mixture: Mixture | None = None
) -> list[str]:
    """Greedily generated answers of a mixture, or of the bare encoder-decoder."""
    with attached(scorer.backbone.model, mixture):
        return scorer.backbone.generate(
            rows, max_length=scorer.max_length, max_new_tokens=scorer.max_answer_length or 1
        )
