"""Task embeddings: the diagonal of the Fisher information of a task's expert.

Sources: π-Tuning, section 3.2; Task2Vec (Achille et al., 2019).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pidep.backbones.backbone import Backbone
from pidep.errors import ExpertError, UsageError, did_you_mean
from pidep.experts.folder import Expert
from pidep.inputs.row import Input, Row
from pidep.similarity.row_gradients import row_batches, row_gradients

__all__ = ["FisherKind", "diagonal_fisher"]

FisherKind = Literal["empirical", "true", "batch_squared"]
"""`empirical`: labels of the data. `true`: labels drawn from the model, so none are needed.
`batch_squared`: as in the authors' code."""


def diagonal_fisher(
    backbone: Backbone,
    expert: Expert,
    rows: Sequence[Input],
    labels: Sequence[int] | None = None,
    *,
    kind: FisherKind = "empirical",
    seed: int = 0,
    batch_size: int = 16,
) -> dict[str, npt.NDArray[np.float32]]:
    """Mean squared gradient of log p(label | row) for each tensor of the expert.

    `empirical` and `true` square the gradient of each sample. `batch_squared` squares the
    gradient of a batch's mean loss, as the authors' code does, and so shrinks with the batch
    size; it is there for comparison.

    Run it inside `backbone.cached_below(expert.sites)` where the lower layers of these rows were
    computed before.

    Args:
        seed: draws the labels of `true`, and the batches of `batch_squared`.
        batch_size: changes the result of `batch_squared` only. It bounds the memory: one copy of
            the gradient a row.

    Returns:
        `<site>.<tensor>` to an fp32 array of the tensor's shape.

    Raises:
        UsageError: no rows, or labels that are missing, too few or not the expert's.
        ExpertError: the expert does not fit the backbone, or its gradients are not finite.
    """
    _check(expert, rows, labels, kind)
    together = kind == "batch_squared"
    # One number a row, drawn before batching: the labels of `true` do not depend on the batches.
    drawn = torch.rand(len(rows), generator=torch.Generator().manual_seed(seed))
    given = torch.tensor(labels if labels is not None and kind != "true" else [])

    def label_of(numbers: list[int], logits: Tensor) -> Tensor:
        # Labels from the model make the true Fisher, labels of the data the empirical one.
        chosen = (drawn if kind == "true" else given)[numbers].to(logits.device)
        return _draw(logits, chosen) if kind == "true" else chosen

    totals: dict[str, Tensor] = {}
    count = 0
    batches = row_batches(rows, batch_size=batch_size, shuffle_seed=seed if together else None)
    for gradients in row_gradients(
        backbone, expert, rows, label_of, batches=batches, together=together
    ):
        for name, gradient in gradients.items():
            # fp64: thousands of small squares go into one sum.
            squared = gradient.square().sum(0).double()
            totals[name] = totals[name] + squared if name in totals else squared
        count += len(gradient)
    _require_finite(expert, totals)
    return {name: (total / count).float().cpu().numpy() for name, total in totals.items()}


def _require_finite(expert: Expert, totals: Mapping[str, Tensor]) -> None:
    for name, total in totals.items():
        if not torch.isfinite(total).all():
            raise ExpertError(
                f"expert {expert.name!r}: the gradient of {name} is not finite; train it again "
                "with a smaller learning rate"
            )


def _check(expert: Expert, rows: Sequence[Input], labels: Sequence[int] | None, kind: str) -> None:
    if kind not in get_args(FisherKind):
        raise UsageError(
            f"Fisher kind {kind!r}: expected one of "
            f"{', '.join(get_args(FisherKind))}{did_you_mean(kind, get_args(FisherKind))}"
        )
    if not rows:
        raise UsageError(
            f"expert {expert.name!r}: a task embedding needs at least one row, found none"
        )
    if kind == "true":
        # Drawing a text takes a pass per token; a label takes one number.
        if expert.max_answer_length is not None:
            raise UsageError(
                f"expert {expert.name!r}: answers with free texts, which the true Fisher does not "
                "draw; use 'empirical'"
            )
        return
    if labels is None or len(labels) != len(rows):
        found = "none" if labels is None else str(len(labels))
        raise UsageError(
            f"expert {expert.name!r}: the {kind} Fisher needs a label for each of {len(rows)} "
            f"rows, found {found}; use 'true'"
        )
    for label, row in zip(labels, rows, strict=True):
        count = (
            len(row.candidates) if isinstance(row, Row) and row.candidates else len(expert.labels)
        )
        if not 0 <= label < count:
            raise UsageError(
                f"expert {expert.name!r}: labels run from 0 to {count - 1}, found {min(labels)} to "
                f"{max(labels)}"
            )


def _draw(
    logits: Tensor,  # [B, C]
    uniform: Tensor,  # [B] in [0, 1)
) -> Tensor:  # [B] int64
    """A label drawn from each row's softmax, by inverting its cumulative distribution."""
    cumulative = logits.detach().softmax(1).cumsum(1)
    # Rounding can leave the last cumulative probability below 1.
    return (cumulative < uniform.unsqueeze(1)).sum(1).clamp(max=logits.shape[1] - 1)
