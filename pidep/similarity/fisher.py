"""Task embeddings: the diagonal of the Fisher information of a task's expert.

Sources: π-Tuning, section 3.2; Task2Vec (Achille et al., 2019).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from pidep.adapters.mixture import Mixture, attached
from pidep.backbones.backbone import Backbone
from pidep.errors import ExpertError, UsageError, did_you_mean
from pidep.experts.folder import Expert
from pidep.inputs.row import Input, Row, size_key

__all__ = ["FisherKind", "diagonal_fisher", "row_batches"]

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

    Per-sample gradients need no loop: every row of the batch has its own view of the tensors as
    leaves (`ExpertSite.rows`), so one backward pass keeps the samples' gradients apart. Run it
    inside `backbone.cached_below(expert.sites)` where the lower layers of these rows were
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
    mixture = Mixture.of([expert])
    logits_of = _logits(backbone, expert, rows)
    together = kind == "batch_squared"
    # One number a row, drawn before batching: the labels of `true` do not depend on the batches.
    drawn = torch.rand(len(rows), generator=torch.Generator().manual_seed(seed))
    given = torch.tensor(labels if labels is not None and kind != "true" else [])
    totals: dict[str, Tensor] = {}
    count = 0
    with attached(backbone.model, mixture):
        for numbers in row_batches(
            rows, batch_size=batch_size, shuffle_seed=seed if together else None
        ):
            leaves = _row_leaves(mixture, expert, num_rows=1 if together else len(numbers))
            logits = logits_of([rows[number] for number in numbers])
            # Labels from the model make the true Fisher, labels of the data the empirical one.
            chosen = (drawn if kind == "true" else given)[numbers].to(logits.device)
            targets = _draw(logits, chosen) if kind == "true" else chosen
            loss = cross_entropy(logits, targets, reduction="mean" if together else "sum")
            # A tensor that no row of the batch uses has a gradient of zero, not none.
            gradients = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
            for name, gradient in zip(leaves, gradients, strict=True):
                # fp64: thousands of small squares go into one sum.
                squared = gradient.square().sum(0).double()
                totals[name] = totals[name] + squared if name in totals else squared
            count += 1 if together else len(numbers)
    _require_finite(expert, totals)
    return {name: (total / count).float().cpu().numpy() for name, total in totals.items()}


def _require_finite(expert: Expert, totals: Mapping[str, Tensor]) -> None:
    for name, total in totals.items():
        if not torch.isfinite(total).all():
            raise ExpertError(
                f"expert {expert.name!r}: the gradient of {name} is not finite; train it again "
                "with a smaller learning rate"
            )


def _logits(
    backbone: Backbone, expert: Expert, rows: Sequence[Input]
) -> Callable[[Sequence[Input]], Tensor]:
    """A function from some of the rows to their `[B, C]` logits under the attached expert."""
    answers = backbone.answer_scorer(
        expert.label_texts,
        torch.from_numpy(expert.label_embeddings),
        logit_scale=expert.logit_scale,
        max_answer_length=expert.max_answer_length,
    )
    answers.learn(rows)
    return lambda some: answers.logits(some, max_length=expert.max_length)


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


def row_batches(
    rows: Sequence[Input], *, batch_size: int, shuffle_seed: int | None
) -> Iterator[list[int]]:
    """Row numbers in batches: by length, so that little is padding, or shuffled with a seed.

    Only `batch_squared` depends on which rows share a batch, so only it shuffles.
    """
    if shuffle_seed is None:
        order = sorted(range(len(rows)), key=lambda row: size_key(rows[row]))
    else:
        order = torch.randperm(
            len(rows), generator=torch.Generator().manual_seed(shuffle_seed)
        ).tolist()
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def _row_leaves(mixture: Mixture, expert: Expert, *, num_rows: int) -> dict[str, Tensor]:
    """Set `num_rows` views of each site's tensors as its rows, each with its own gradient.

    One row is shared by the whole batch.
    """
    leaves: dict[str, Tensor] = {}
    for name, site in mixture.by_name():
        own = {
            tensor: torch.from_numpy(array).to(site.alpha_logits.device)
            for tensor, array in expert.sites[name].items()
        }
        site.rows = {
            # A view without memory: all rows share the numbers, and each has its own gradient.
            tensor: value.expand(num_rows, *value.shape).requires_grad_()
            for tensor, value in own.items()
        }
        leaves |= {f"{name}.{tensor}": value for tensor, value in site.rows.items()}
    return leaves


def _draw(
    logits: Tensor,  # [B, C]
    uniform: Tensor,  # [B] in [0, 1)
) -> Tensor:  # [B] int64
    """A label drawn from each row's softmax, by inverting its cumulative distribution."""
    cumulative = logits.detach().softmax(1).cumsum(1)
    # Rounding can leave the last cumulative probability below 1.
    return (cumulative < uniform.unsqueeze(1)).sum(1).clamp(max=logits.shape[1] - 1)
