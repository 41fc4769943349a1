"""What the neighbours were predicted to add, and what they added."""

from __future__ import annotations

from pidep.files.html import paragraph, table
from pidep.similarity.learned import COVERAGE
from pidep.similarity.learned_text import points_interval
from pidep.tuning.run_folder import METHODS, Run

__all__ = ["predicted_and_measured"]


def predicted_and_measured(run: Run) -> str:
    """The parts of each predicted gain, and the gains on the test rows; HTML."""
    measured = _measured(run)
    if not run.predicted:
        return paragraph(
            "No gain in points was predicted: only `neighbours_by=ranker` does, with what pidep "
            f"graph --learn measured in the pool. {measured}"
        )
    parts = list(next(iter(run.predicted.values())).parts)
    rows = [
        [
            name,
            *(f"{100 * value:+.1f}" for value in (said.level, *said.parts.values(), said.gain)),
            points_interval(said),
        ]
        for name, said in run.predicted.items()
    ]
    mean = sum(said.gain for said in run.predicted.values()) / len(run.predicted)
    columns = ["helper", "level", *parts, "predicted gain", f"{COVERAGE:.0%} interval"]
    return table(columns, rows) + paragraph(
        "Gain of each helper alone, mixed with the own expert, in points: the sum of level and "
        f"parts. The mean of the predictions is {100 * mean:+.1f}. {measured}"
    )


def _measured(run: Run) -> str:
    """A sentence; empty where the test rows have no labels."""
    own = run.metrics.get("own_expert")
    found = [
        f"{METHODS[method]} {100 * (run.metrics[method] - own):+.1f}"
        for method in ("uniform", "pi")
        if own is not None and method in run.metrics
    ]
    if not found:
        return ""
    return f"Measured with all of them, above the own expert in points: {', '.join(found)}."
