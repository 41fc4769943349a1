"""Gradients of each row's loss at an expert's tensors, without a loop over the rows.

Every row of a batch has its own view of the tensors as leaves (`ExpertSite.rows`), so one backward
pass keeps the rows' gradients apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from pidep.adapters.mixture import Mixture, attached
from pidep.backbones.backbone import Backbone
from pidep.experts.folder import Expert
from pidep.inputs.row import Input, size_key

__all__ = ["LabelOf", "row_batches", "row_gradients"]

LabelOf = Callable[[list[int], Tensor], Tensor]
"""`(row numbers, their logits [B, C]) -> labels [B]`, int64 on the logits' device."""


def row_gradients(
    backbone: Backbone,
    expert: Expert,
    rows: Sequence[Input],
    label_of: LabelOf,
    *,
    batches: Iterable[list[int]],
    together: bool = False,
) -> Iterator[dict[str, Tensor]]:
    """The gradient of −log p(label | row) for each tensor of the expert, a batch at a time.

    The expert is attached while the iterator is read. Read the iterator to its end.

    Args:
        batches: row numbers; a batch needs one copy of the gradient a row.
        together: one gradient a batch, that of its mean loss.

    Yields:
        `<site>.<tensor>` to `[B, …]`, or to `[1, …]` with `together`.

    Raises:
        ExpertError: the expert does not fit the backbone.
    """
    mixture = Mixture.of([expert])
    answers = backbone.answer_scorer(
        expert.label_texts,
        torch.from_numpy(expert.label_embeddings),
        logit_scale=expert.logit_scale,
        max_answer_length=expert.max_answer_length,
    )
    # Candidates are embedded by the bare backbone, so before the expert is attached.
    answers.learn(rows)
    with attached(backbone.model, mixture):
        for numbers in batches:
            leaves = _row_leaves(mixture, expert, num_rows=1 if together else len(numbers))
            logits = answers.logits(
                [rows[number] for number in numbers], max_length=expert.max_length
            )
            loss = cross_entropy(
                logits, label_of(numbers, logits), reduction="mean" if together else "sum"
            )
            # A tensor that no row of the batch uses has a gradient of zero, not none.
            found = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
            yield dict(zip(leaves, found, strict=True))


def row_batches(
    rows: Sequence[Input], *, batch_size: int, shuffle_seed: int | None = None
) -> Iterator[list[int]]:
    """Row numbers in batches: by length, so that little is padding, or shuffled with a seed.

    Only a Fisher of the kind `batch_squared` depends on which rows share a batch, so only that one
    shuffles.
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
