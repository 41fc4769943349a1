"""Where α starts: stacking (Wolpert, 1992; Breiman, 1996) on the target's own rows, which no helper has seen.

A mixture's logits are taken to be the mixture of its experts' logits, z(α) ≈ Σₖ αₖ zₖ, which makes finding α convex and costs one forward
pass an expert. The own expert, which knows the rows by heart, stands there as the bare backbone: what no helper is good for is left to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pidep.errors import ExpertError
from pidep.experts.folder import Expert
from pidep.experts.mixture import Mixture
from pidep.tasks.data import Split
from pidep.tuning.guard import trust
from pidep.tuning.trainer import Scorer, predict_logits

__all__ = ["Stack", "stacking_weights"]

_PRIOR = 2.0
"""How strongly all are taken to be equally good, in trusted rows."""
_USUAL_TEMPERATURE = 0.5
"""log of it: experts are surer of themselves on other tasks than they have reason to."""
_IMPOSSIBLE = -1e4
"""Instead of -inf, which cannot be averaged, for places left over where rows have candidates of their own."""


@dataclass(frozen=True)
class Stack:
    """What the bare backbone and each helper alone answer to the same rows."""

    logits: Tensor
    """`[K, N, C]`: the backbone, then the helpers."""
    labels: Tensor
    """`[N]`."""

    @classmethod
    def of(cls, scorer: Scorer, helpers: Sequence[Expert], rows: Split) -> Stack:
        """One forward pass of the rows for each.

        Raises:
            ExpertError: a helper answers NaN or Inf.
        """
        alone = {"the bare backbone": None, **{f"expert {helper.name!r}": Mixture.of([helper]) for helper in helpers}}
        found = {who: predict_logits(scorer, rows.rows, mixture).clamp(min=_IMPOSSIBLE) for who, mixture in alone.items()}
        for who, logits in found.items():
            if not logits.isfinite().all():
                raise ExpertError(f"{who}: answers the training rows with NaN or Inf; train it again, or leave it out")
        return cls(torch.stack([*found.values()]).double(), torch.tensor(rows.labels))

    def weights(self) -> Tensor:
        """`[K]` weights of the own expert and the helpers."""
        return stacking_weights(self.logits, self.labels)


def stacking_weights(logits: Tensor, labels: Tensor) -> Tensor:
    """`[K]` weights in (0, 1) that sum to 1, at which the mixed logits `[K, N, C]` fit the labels `[N]` best.

    The most probable α, and temperature, under t · Σₙ cross-entropy(Σₖ αₖ zₖₙ / T) and `_PRIOR` · KL(uniform ‖ α). The trust
    t = N / (N + 64): few rows, drawn evenly from the classes, say less of all the others than as many drawn at random.
    """
    count, believed = len(logits), trust(len(labels))
    scores = torch.zeros(count, dtype=torch.float64, requires_grad=True)
    log_temperature = torch.full((), _USUAL_TEMPERATURE, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([scores, log_temperature], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        mixed = torch.tensordot(torch.softmax(scores, 0), logits.double(), 1) / log_temperature.exp()
        fit = nn.functional.cross_entropy(mixed, labels, reduction="sum")
        prior = -_PRIOR * torch.log_softmax(scores, 0).mean() + (log_temperature - _USUAL_TEMPERATURE).square()
        total: Tensor = believed * fit + prior
        total.backward()  # type: ignore[no-untyped-call]
        return total

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    return torch.softmax(scores.detach(), 0).float()
