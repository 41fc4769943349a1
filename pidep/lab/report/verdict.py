"""The run in one sentence: did interpolation help, and can the test rows tell?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pidep.tasks.metrics.intervals import Interval, difference
from pidep.tuning.run_folder import KEPT, METHODS, Run
from pidep.tuning.under_floors import under_sentence

if TYPE_CHECKING:
    from pidep.lab.report.evaluate import Evaluation

__all__ = ["verdict"]

_RESULTS = ("pi", "zero_shot", "own_priors", "own_tuned", "own_expert")
"""Methods that a run can end with; the first that was measured is its result."""
_SUBJECT = {
    "pi": "π",
    "own_tuned": "The own expert at the high rate",
    "own_priors": "The own expert with class priors",
}


def verdict(run: Run, evaluation: Evaluation | None) -> str:
    """The result and what it is compared with; a second sentence where it is under a floor."""
    under = under_sentence(run.metric, run.metrics)
    return _compared(run, evaluation) + (f" Its {under}." if under else "")


def _compared(run: Run, evaluation: Evaluation | None) -> str:
    result = next((name for name in _RESULTS if name in run.metrics), None)
    if result is None:
        return f"Nothing was measured: the {run.test_rows} test rows have no labels."
    against = "own_expert" if result != "own_expert" and "own_expert" in run.metrics else "backbone"
    value, other = run.metrics[result], run.metrics[against]
    figures = (
        f"{run.metric.replace('_', ' ')} {value:.3f} against {other:.3f} "
        f"on {run.test_rows} test rows"
    )
    what = _SUBJECT.get(result, f"The {METHODS[result]}")
    than = METHODS[against]
    if result == "pi" and run.own is not None and run.expert.digest == run.own.digest:
        return f"Interpolation kept the {than} as it is: {figures}."
    gap = _difference(run, evaluation, result, against)
    if gap is not None:
        told = (
            f"the difference is {value - other:+.3f}, 95 % interval {gap.low:+.3f} to "
            f"{gap.high:+.3f} (paired {gap.method})"
        )
        return f"{what} is {_word(gap.low, gap.high)} the {than}: {figures}; {told}."
    one, two = run.intervals.get(result), run.intervals.get(against)
    if one is None or two is None:
        return f"{what} has {figures} of the {than}; the run recorded no interval."
    apart = one.low > two.high or one.high < two.low
    told = f"their 95 % intervals {'do not overlap' if apart else 'overlap'} ({one.method})"
    low, high = (value - other,) * 2 if apart else (-1.0, 1.0)
    return f"{what} is {_word(low, high)} the {than}: {figures}; {told}."


def _difference(
    run: Run, evaluation: Evaluation | None, result: str, against: str
) -> Interval | None:
    """The interval of the difference, where both models' predictions are there."""
    if evaluation is None or evaluation.test is None:
        return None
    made = {found.model: found.labels.tolist() for found in evaluation.predictions}
    one, other = (made.get(KEPT.get(name, "")) for name in (result, against))
    if one is None or other is None:
        return None
    return difference(run.metric, evaluation.test.labels, one, other)


def _word(low: float, high: float) -> str:
    if low > 0:
        return "better than"
    return "worse than" if high < 0 else "not clearly better or worse than"
