"""The metric of a mixture on a split."""

from __future__ import annotations

from dataclasses import dataclass

from pidep.adapters.mixture import Mixture
from pidep.tasks.data import Split
from pidep.tasks.metrics import score, score_texts
from pidep.tasks.metrics.intervals import Interval, interval, interval_of_texts
from pidep.training.scorer import Scorer, predict_answers, predict_logits

__all__ = ["Measurement", "evaluate", "measured_labels"]


@dataclass(frozen=True)
class Measurement:
    """A metric on some rows."""

    value: float
    interval: Interval | None
    """Its 95 % interval over the draw of the rows."""


def evaluate(
    scorer: Scorer, split: Split, metric: str, mixture: Mixture | None = None
) -> Measurement:
    """The metric of a mixture, or of the bare backbone, on a split.

    Tasks with free answers are scored on generated texts, all others on the likeliest label.
    """
    if scorer.max_answer_length is not None:
        made = predict_answers(scorer, split.rows, mixture)
        return Measurement(
            score_texts(metric, split.targets, made),
            interval_of_texts(metric, split.targets, made),
        )
    predictions = predict_logits(scorer, split.rows, mixture).argmax(1).tolist()
    return measured_labels(metric, split.labels, predictions)


def measured_labels(metric: str, labels: list[int], predictions: list[int]) -> Measurement:
    """The metric of label numbers that were predicted, however."""
    return Measurement(score(metric, labels, predictions), interval(metric, labels, predictions))
