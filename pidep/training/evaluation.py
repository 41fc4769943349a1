"""The metric of a mixture on a split."""

from __future__ import annotations

from pidep.adapters.mixture import Mixture
from pidep.tasks.data import Split
from pidep.tasks.metrics import score, score_texts
from pidep.training.scorer import Scorer, predict_answers, predict_logits

__all__ = ["evaluate"]


def evaluate(scorer: Scorer, split: Split, metric: str, mixture: Mixture | None = None) -> float:
    """The metric of a mixture, or of the bare backbone, on a split.

    Tasks with free answers are scored on generated texts, all others on the likeliest label.
    """
    if scorer.max_answer_length is not None:
        return score_texts(metric, split.targets, predict_answers(scorer, split.rows, mixture))
    predictions = predict_logits(scorer, split.rows, mixture).argmax(1).tolist()
    return score(metric, split.labels, predictions)
