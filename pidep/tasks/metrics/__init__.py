"""Metrics by name, for label numbers, for texts with references, and for boxes.

Boxes are texts of location tokens. May import `pidep.inputs.locations` and `pidep.errors`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from pidep.errors import TaskError

__all__ = ["METRICS", "Metric", "score", "score_texts"]

Metric = Literal[
    "accuracy", "macro_f1", "acc@0.5", "vqa_score", "bleu4", "cider", "meteor", "spice"
]
METRICS: Mapping[str, tuple[Metric, ...]] = {
    "labels": ("accuracy", "macro_f1"),
    "boxes": ("acc@0.5",),
    "texts": ("accuracy", "vqa_score", "bleu4", "cider", "meteor", "spice"),
}
"""Kinds of answers to the metrics they can have; the default comes first."""


def score(metric: str, labels: Sequence[int], predictions: Sequence[int]) -> float:
    """`accuracy` or `macro_f1`, in [0, 1]."""
    # Imported here: scikit-learn takes a second, and reading a task needs none of it.
    from sklearn.metrics import accuracy_score, f1_score

    if metric == "macro_f1":
        return float(f1_score(labels, predictions, average="macro", zero_division=0.0))
    return float(accuracy_score(labels, predictions))


def score_texts(
    metric: str, references: Sequence[Sequence[str]], predictions: Sequence[str]
) -> float:
    """A metric of generated texts, each with its references, in [0, 1]; `cider` goes to 10.

    `accuracy` counts texts that equal a reference, white space apart.

    Raises:
        TaskError: an unknown metric, numbers that differ, a text without references, or a metric
            whose library is not installed.

    >>> score_texts("accuracy", [("yes",), ("two dogs", "2 dogs")], ["no", "2  dogs"])
    0.5
    """
    if metric not in (*METRICS["texts"], *METRICS["boxes"]):
        raise TaskError(
            f"metric {metric!r}: expected one for texts, "
            f"{', '.join((*METRICS['texts'], *METRICS['boxes']))}"
        )
    if len(references) != len(predictions) or not predictions:
        raise TaskError(
            f"metric {metric!r}: expected as many texts as references and at least one, found "
            f"{len(predictions)}, {len(references)}"
        )
    for number, row in enumerate(references, 1):
        if not row:
            raise TaskError(f"metric {metric!r}: text {number} has no reference")
    return _scorer(metric)(references, predictions)


def _scorer(metric: str) -> Callable[[Sequence[Sequence[str]], Sequence[str]], float]:
    from pidep.tasks.metrics import boxes, captions, captions_java, vqa

    return {
        "accuracy": _exact,
        "acc@0.5": boxes.acc_at_half,
        "vqa_score": vqa.vqa_score,
        "bleu4": captions.bleu4,
        "cider": captions.cider,
        "meteor": captions_java.meteor,
        "spice": captions_java.spice,
    }[metric]


def _exact(references: Sequence[Sequence[str]], predictions: Sequence[str]) -> float:
    right = sum(
        text.split() in [one.split() for one in row]
        for row, text in zip(references, predictions, strict=True)
    )
    return right / len(predictions)
