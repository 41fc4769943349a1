"""What the run's experts answer to the test rows: by label, and where they are wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pidep.files.html import paragraph, table
from pidep.lab.report import figures
from pidep.lab.report.classes import Share, class_scores, mistakes
from pidep.lab.report.html import figure, interval_text, number_text
from pidep.tuning.run_folder import KEPT, Run

if TYPE_CHECKING:
    from pidep.lab.report.evaluate import Evaluation, Predictions

__all__ = ["classes_section", "confusion_section", "mistakes_section"]


def confusion_section(run: Run, evaluation: Evaluation | None) -> str:
    """The confusion matrix of each expert of the run."""
    if evaluation is None or not evaluation.predictions:
        return _not_predicted(run, evaluation)
    kept = {name: method for method, name in KEPT.items()}
    parts = []
    for number, one in enumerate(evaluation.predictions):
        again = run.metrics.get(kept[one.model])
        agrees = (
            "as the run says"
            if again is not None and abs(again - one.score) < 1e-9
            else f"the run says {number_text(again, 4)}"
        )
        svg = figures.confusion(one, _label_names(run, one), name=f"confusion-{number}")
        shade = "Shade: share of the true label's rows, 0 (light) to 1 (dark)."
        parts.append(
            figure(
                svg,
                f"{one.model}: {run.metric.replace('_', ' ')} {one.score:.4f}, {agrees}. {shade}",
            )
        )
    return f'<div class="beside">{"".join(parts)}</div>'


def _not_predicted(run: Run, evaluation: Evaluation | None) -> str:
    if evaluation is None:
        return paragraph("Not computed: --no-evaluate.")
    return paragraph(
        "Not computed: answers are free texts."
        if run.metrics
        else "Not computed: the test rows have no labels."
    )


def _label_names(run: Run, found: Predictions) -> list[str]:
    return list(run.labels) or [f"candidate {place}" for place in range(len(found.counts))]


def classes_section(run: Run, evaluation: Evaluation | None) -> str:
    """Precision, recall and F1 of each label, by the run's result."""
    if evaluation is None or not evaluation.predictions:
        return _not_predicted(run, evaluation)
    found = evaluation.predictions[-1]
    names = _label_names(run, found)
    rows = [
        [
            names[one.label],
            str(one.rows),
            str(one.predicted),
            *_share_cells(one.precision),
            *_share_cells(one.recall),
            *_share_cells(one.f1),
        ]
        for one in class_scores(evaluation.test.labels, found)
    ]
    columns = ["label", "rows", "predicted"]
    for name in ("precision", "recall", "F1"):
        columns += [name, "95 %"]
    return table(columns, rows) + paragraph(
        f"Of {found.model}. Precision: the share of the rows given this label that have it. "
        "Recall: the share of the rows with this label that are given it. Intervals: Wilson for "
        "precision and recall, bootstrap (1,000 resamples) for F1."
    )


def _share_cells(found: Share | None) -> tuple[str, str]:
    return ("–", "–") if found is None else (f"{found.value:.3f}", interval_text(found.interval))


def mistakes_section(run: Run, evaluation: Evaluation | None) -> str:
    """The mistakes that the run's result is most sure of."""
    if evaluation is None or not evaluation.predictions:
        return _not_predicted(run, evaluation)
    found = evaluation.predictions[-1]
    rows = [
        [str(one.row), one.text, one.label, one.predicted, f"{one.confidence:.3f}"]
        for one in mistakes(evaluation.test, found, run.labels)
    ]
    if not rows:
        return paragraph(f"{found.model} makes no mistake on the test rows.")
    wrong = int((found.labels != np.asarray(evaluation.test.labels)).sum())
    return table(["row", "text", "true", "predicted", "probability"], rows) + paragraph(
        f"The {len(rows)} of {wrong} mistakes of {found.model} with the highest probability of the "
        "wrong label. Labels in the data can be wrong, too. Rows are numbered within the test rows."
    )
