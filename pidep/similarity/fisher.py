"""Task embeddings: the diagonal of the empirical Fisher of a task's expert (π-Tuning section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pidep.backbones.encoder import Encoder
from pidep.experts.folder import Expert
from pidep.experts.mixture import Mixture, attached

__all__ = ["diagonal_fisher"]


def diagonal_fisher(
    backbone: Encoder, expert: Expert, texts: Sequence[str], labels: Sequence[int], *, batch_size: int = 16
) -> dict[str, npt.NDArray[np.float32]]:
    """Mean over samples of the squared gradient of log p(label | text), one array per expert tensor.

    Per-sample gradients without a loop: every row of the batch gets its own copy of the factors as leaves
    (`lora_bank`), so one backward pass leaves each sample's gradient apart. Memory is bounded by `batch_size`.
    """
    mixture = Mixture.of([expert])
    label_embeddings = torch.from_numpy(expert.label_embeddings)
    total: dict[str, Tensor] = {}
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    with attached(backbone.model, mixture):
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            leaves: dict[str, Tensor] = {}
            for name, site in mixture.by_name():
                own = {tensor: torch.from_numpy(array) for tensor, array in expert.sites[name].items()}
                site.rows = {key: value.expand(len(rows), *value.shape).contiguous().requires_grad_() for key, value in own.items()}
                leaves |= {f"{name}.{key}": value for key, value in site.rows.items()}
            logits = expert.logit_scale * backbone.embed([texts[row] for row in rows], max_length=expert.max_length) @ label_embeddings.T
            loss = torch.nn.functional.cross_entropy(logits, torch.tensor([labels[row] for row in rows]), reduction="sum")
            for name, gradient in zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True):
                squared = gradient.square().sum(0)
                total[name] = total[name] + squared if name in total else squared
    return {name: (value / max(len(texts), 1)).numpy() for name, value in total.items()}
