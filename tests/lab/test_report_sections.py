"""What the sections of a report say, on runs that are made up. No backbone."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pidep.inputs.row import Row
from pidep.interpolation.guard import CHOICES, Comparison, Decision
from pidep.lab.report import figures
from pidep.lab.report.answers import classes_section, confusion_section, mistakes_section
from pidep.lab.report.classes import class_scores, mistakes
from pidep.lab.report.decision import decision_section
from pidep.lab.report.evaluate import Evaluation, Predictions
from pidep.lab.report.neighbourhood import Neighbourhood
from pidep.lab.report.sections import (
    alpha_section,
    result_section,
    settings_section,
    similarity_section,
)
from pidep.lab.report.task_graph import graph
from pidep.lab.report.verdict import verdict
from pidep.similarity.learned import PredictedGain
from pidep.tasks.data import Split
from pidep.tasks.metrics import score
from pidep.tasks.metrics.intervals import Interval, wilson
from pidep.tuning.run_folder import Alpha, Phase, Run, Step

LABELS = [0, 1, 2] * 40


def expert(digest: str, provenance: dict[str, Any] | None = None) -> Any:
    return SimpleNamespace(
        digest=digest,
        provenance=provenance or {},
        kind="lora",
        sites={},
        backbone="tiny",
        backbone_digest="sha256:0",
        label_bias=(),
        max_answer_length=None,
    )


def made_run(metrics: dict[str, float], *, metric: str = "accuracy", **more: Any) -> Run:
    own = expert("sha256:own")
    decision = more.pop("decision", None)
    result = expert("sha256:pi", {"decision": decision.to_json()} if decision else None)
    values: dict[str, Any] = {
        "folder": Path("runs/movie"),
        "name": "movie",
        "task": {"name": "movie", "labels": {"a": "a", "b": "b", "c": "c"}},
        "labels": ("a", "b", "c"),
        "config": {"policy": "auto"},
        "metric": metric,
        "test_rows": len(LABELS),
        "metrics": metrics,
        "intervals": {name: wilson(value, len(LABELS)) for name, value in metrics.items()},
        "alpha": Alpha(("movie",), {}, (1.0,)),
        "neighbours": {"book": 0.5},
        "neighbours_by": "h-score",
        "predicted": {},
        "phases": (),
        "seconds": 1.0,
        "seconds_by_phase": {},
        "provenance": {},
        "own": own,
        "expert": result,
    }
    return Run(**{"digest": "sha256:result", **values, **more})


def predictions(model: str, wrong: dict[int, int], *, sure: float = 0.9) -> Predictions:
    """All right but these rows."""
    predicted = np.array([wrong.get(row, label) for row, label in enumerate(LABELS)])
    counts = np.zeros((3, 3), np.int64)
    np.add.at(counts, (LABELS, predicted), 1)
    confidence = np.linspace(0.4, sure, len(LABELS))
    return Predictions(
        model, predicted, confidence, counts, score("accuracy", LABELS, predicted.tolist())
    )


def evaluation(*found: Predictions) -> Evaluation:
    rows: list[Any] = [f"text {row}" for row in range(len(LABELS))]
    return Evaluation(found, Split(rows, LABELS), 1000, None)


def wrong_rows(count: int, first: int = 0) -> dict[int, int]:
    return {row: (LABELS[row] + 1) % 3 for row in range(first, first + count)}


def words(html: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html))


# The verdict.


@pytest.mark.parametrize(
    ("own", "pi", "said"),
    [
        (40, 5, "π is better than the own expert"),
        (5, 40, "π is worse than the own expert"),
        (10, 9, "π is not clearly better or worse than the own expert"),
    ],
)
def test_the_verdict_is_one_sentence_and_needs_evidence(own: int, pi: int, said: str) -> None:
    found = evaluation(predictions("own expert", wrong_rows(own)), predictions("π", wrong_rows(pi)))
    scores = {one.model: one.score for one in found.predictions}
    run = made_run({"own_expert": scores["own expert"], "pi": scores["π"]})
    one = verdict(run, found)
    assert said in one
    assert f"accuracy {scores['π']:.3f} against {scores['own expert']:.3f} on 120 test rows" in one
    assert "(paired bootstrap, 1,000 resamples)" in one
    assert one.count(". ") == 0
    assert one.endswith(".")
    # Without predictions, the recorded intervals have to tell.
    alone = verdict(run, None)
    assert said in alone
    assert "their 95 % intervals" in alone


def test_the_verdict_of_a_run_without_interpolation_or_labels() -> None:
    assert "own expert is better than the bare backbone" in verdict(
        made_run({"backbone": 0.4, "own_expert": 0.9}), None
    )
    assert verdict(made_run({}), None) == (
        "Nothing was measured: the 120 test rows have no labels."
    )
    alone = replace(made_run({"backbone": 0.4, "own_expert": 0.9}), expert=expert("sha256:own"))
    assert verdict(alone, None).startswith("The own expert is better than the bare backbone")
    kept = replace(made_run({"own_expert": 0.9, "pi": 0.9}), expert=expert("sha256:own"))
    assert verdict(kept, None).startswith("Interpolation kept the own expert as it is")
    older = replace(made_run({"own_expert": 0.5, "pi": 0.6}, metric="macro_f1"), intervals={})
    assert "the run recorded no interval" in verdict(older, None)


def test_every_metric_has_its_interval_and_the_name_of_the_method() -> None:
    run = made_run({"own_expert": 0.5, "pi": 0.6}, metric="macro_f1")
    boot = {name: Interval(0.41, 0.59, "bootstrap, 1,000 resamples") for name in run.metrics}
    said = words(result_section(replace(run, intervals=boot)))
    assert said.count("0.410 to 0.590") == 2
    assert "The interval (bootstrap, 1,000 resamples) covers" in said
    assert "recorded no interval" in words(result_section(replace(run, intervals={})))
    # An accuracy of an older run: the number of rows is enough.
    older = replace(made_run({"own_expert": 0.5}), intervals={})
    assert "0.412 to 0.588" in words(result_section(older))


def test_an_own_expert_at_the_high_rate_is_not_called_pi() -> None:
    """Without neighbours nothing is interpolated, and the result can still be another expert."""
    name = "own expert, high rate"
    found = evaluation(predictions("own expert", wrong_rows(40)), predictions(name, wrong_rows(4)))
    scores = {one.model: one.score for one in found.predictions}
    metrics = {"own_expert": scores["own expert"], "own_tuned": scores[name]}
    run = made_run(metrics, neighbours={})
    assert list(run.experts) == ["own expert", name]
    assert "The own expert at the high rate is better than the own expert" in verdict(run, found)
    assert words(confusion_section(run, found)).count("as the run says") == 2


# The neighbours.


def test_predicted_gains_add_up_and_stand_beside_the_measured() -> None:
    metrics = {"own_expert": 0.50, "uniform": 0.53, "pi": 0.56}
    said = {"book": PredictedGain(0.02, {"h-score": 0.013, "leep": -0.001}, 0.04)}
    html = similarity_section(made_run(metrics, neighbours_by="ranker", predicted=said), None)
    assert "Neighbours were chosen by ranker." in words(html)
    assert "book +2.0 +1.3 -0.1 +3.2 -0.8 to 7.2" in words(html)
    assert "own expert in points: uniform mixture +3.0, π (interpolated) +6.0." in words(html)
    without = words(similarity_section(made_run(metrics), None))
    assert "No gain in points was predicted" in without
    assert "uniform mixture +3.0" in without
    assert "Measured" not in words(similarity_section(made_run({}), None))


# The decision.

DECISION = Decision(
    "auto",
    "mixture",
    "no other candidate is clearly better; …",
    rows=160,
    losses={"own_expert": 1.2, "uniform": 1.1, "in_context": 0.9, "mixture": 1.0, "joint": 0.8},
    weights={"own_expert": 0.1, "uniform": 0.4, "in_context": 0.5},
    prior={"own_expert": 0.5, "uniform": 1.0, "in_context": 1.0},
    evidence=7.5,
    comparisons={
        "uniform": Comparison("mixture", 1.1, 1.0, -0.1, 0.05),
        "joint": Comparison("own_expert", 0.8, 0.83, 0.03, 0.06),
    },
    left_out={
        "own_expert": "not compared: the uniform mixture has the lower loss",
        "in_context": "a part of the average, not a choice of its own",
        "joint_high_rate": "training diverged on all rows",
    },
)


def rows_of(html: str) -> dict[str, list[str]]:
    rows = re.findall(r"<tr[^>]*><th scope=\"row\">(.*?)</th>(.*?)</tr>", html)
    return {name: re.findall(r"<td[^>]*>(.*?)</td>", cells) for name, cells in rows}


def test_no_candidate_is_passed_over_without_a_word() -> None:
    html = decision_section(made_run({"pi": 0.5}, decision=DECISION))
    rows = rows_of(html)
    assert len(rows) == len({*DECISION.losses, *DECISION.left_out})
    outcome = {name: cells[-1] for name, cells in rows.items()}
    assert outcome["average of own expert, uniform and in context"] == "chosen"
    assert outcome["uniform mixture"] == "not better"
    joint = rows["joint training of all experts"]
    assert joint[-1] == "better, but not by the 0.0600 that it needs"
    assert joint[3:5] == ["own expert, 0.83000", "+0.0300"]
    assert outcome["own expert"] == DECISION.left_out["own_expert"]
    assert outcome["own expert, learned in the mixture"] == DECISION.left_out["in_context"]
    high = rows["joint training of all experts, high rate"]
    assert high == ["–", "–", "–", "–", "–", "training diverged on all rows"]
    assert "prior · exp(−7.50 · loss)" in html
    assert all(cells[-1] for cells in rows.values())


def test_a_default_that_is_replaced_and_a_runner_up_say_so() -> None:
    found = replace(
        DECISION,
        chosen="joint",
        comparisons={
            "uniform": Comparison("mixture", 0.9, 1.0, 0.1, 0.05),
            "joint": Comparison("own_expert", 0.8, 1.0, 0.2, 0.06),
        },
    )
    rows = rows_of(decision_section(made_run({"pi": 0.5}, decision=found)))
    assert rows["joint training of all experts"][-1] == "chosen"
    assert rows["uniform mixture"][-1] == "clearly better, but not the best of those"
    average = rows["average of own expert, uniform and in context"]
    assert average[-1] == "replaced by a clearly better one"


def test_a_decision_of_an_older_version_is_still_shown() -> None:
    record = {"policy": "auto", "chosen": "joint_harder", "why": "so", "rows": 8}
    run = made_run({"pi": 0.5})
    run.expert.provenance["decision"] = {**record, "losses": {"joint_harder": 0.5, "uniform": 0.6}}
    rows = rows_of(decision_section(run))
    assert rows["joint training of all experts, high rate"][-1] == "chosen"
    assert rows["uniform mixture"][-1] == "–"
    assert set(CHOICES) >= {"mixture", "joint_high_rate"}


# Labels and mistakes.


def test_the_figures_of_each_label() -> None:
    wrong = {0: 1, 3: 1, 6: 2}
    found = predictions("π", wrong)
    scores = class_scores(LABELS, found)
    assert [one.rows for one in scores] == [40, 40, 40]
    assert [one.predicted for one in scores] == [37, 42, 41]
    assert scores[0].recall is not None
    assert scores[0].recall.value == pytest.approx(37 / 40)
    assert scores[1].precision is not None
    assert scores[1].precision.value == pytest.approx(40 / 42)
    macro = score("macro_f1", LABELS, found.labels.tolist())
    assert np.mean([one.f1.value for one in scores]) == pytest.approx(macro)
    for one in scores:
        for share in (one.precision, one.recall, one.f1):
            assert share is not None
            assert share.interval.low <= share.value <= share.interval.high
    html = classes_section(made_run({"pi": 0.9}), evaluation(found))
    assert list(rows_of(html)) == ["a", "b", "c"]


def test_a_label_that_is_never_given_has_no_precision() -> None:
    found = predictions("π", {row: 0 for row, label in enumerate(LABELS) if label == 2})
    scores = class_scores(LABELS, found)
    assert scores[2].precision is None
    assert scores[2].f1.value == 0
    assert "–" in rows_of(classes_section(made_run({"pi": 0.9}), evaluation(found)))["c"]


def test_the_ten_mistakes_that_are_surest_come_first() -> None:
    found = predictions("π", wrong_rows(30))
    shown = mistakes(evaluation(found).test, found, ["a", "b", "c"])
    assert [one.row for one in shown] == list(range(30, 20, -1))
    assert [one.confidence for one in shown] == sorted(
        (one.confidence for one in shown), reverse=True
    )
    assert (shown[0].text, shown[0].label, shown[0].predicted) == ("text 29", "c", "a")
    html = mistakes_section(made_run({"pi": 0.5}), evaluation(found))
    assert "The 10 of 30 mistakes of π" in html
    none = evaluation(predictions("π", {}))
    assert "π makes no mistake on the test rows" in mistakes_section(made_run({"pi": 1}), none)


def test_mistakes_of_rows_with_images_and_candidates_of_their_own() -> None:
    rows: list[Any] = [
        Row("which? " + "x" * 400, Path("icons/a.png"), ("an anchor", Row("", b"png"))),
        Row("", None, ("one", "two")),
    ]
    found = Predictions(
        "π", np.array([1, 1]), np.array([0.8, 0.9]), np.zeros((2, 2), np.int64), 0.0
    )
    first, second = mistakes(Split(rows, [0, 0]), found, ())
    assert (first.label, first.predicted) == ("one", "two")
    assert (second.label, second.predicted) == ("an anchor", "[image in the data]")
    assert second.text.endswith("… [image a.png]")
    assert len(second.text) < 330


def test_a_loss_that_falls_by_far_has_labels_of_plain_numbers() -> None:
    """Mathematics is off in figures, so powers of ten would be shown as their source."""
    steps = tuple(Step(step, 10.0 ** (1 - step), None) for step in range(1, 6))
    svg = figures.curves((Phase("own", 5, 5, steps),))
    assert "mathdefault" not in svg
    assert ">0.001<" in svg
    # Five steps: every one is a mark of the curve.
    assert svg.count("<use ") >= 5


# Texts cut, α, and the task graph.


def test_the_texts_that_are_cut() -> None:
    cut = {"max_length": 48, "cut": 82, "texts": 100, "fitting": 210, "longest": 210}
    run = made_run({"pi": 0.5}, provenance={"cut_texts": cut})
    said = words(settings_section(run))
    assert "82 of 100 (82 %) at 48 tokens; max_length 210 would fit all" in said
    for more, told in (
        ({"longest": 900}, "max_length 210 is the limit of the backbone and cuts the fewest"),
        ({"max_length": 210, "longest": 900}, "at 210 tokens, the limit of the backbone"),
    ):
        run = made_run({"pi": 0.5}, provenance={"cut_texts": {**cut, **more}})
        assert told in words(settings_section(run))
    none = made_run({"pi": 0.5}, provenance={"cut_texts": {**cut, "cut": 0}})
    assert "none of 100 at 48 tokens" in words(settings_section(none))
    assert "texts cut" not in words(settings_section(made_run({"pi": 0.5})))


def layers(*rows: tuple[float, ...]) -> dict[str, list[float]]:
    return {f"layer.{number}.query": list(row) for number, row in enumerate(rows)}


def test_alpha_is_shown_as_what_differs_from_uniform() -> None:
    found = Alpha.of(("movie", "book"), layers((0.5004, 0.4996), (0.5, 0.5)))
    assert figures.most_off_uniform(found) == pytest.approx(0.0004)
    svg = figures.alpha(found)
    assert ">+0.0004<" in svg
    assert ">-0.0004<" in svg or ">−0.0004<" in svg
    said = words(alpha_section(made_run({"pi": 0.5}, alpha=found)))
    assert "α minus 0.5000, its value in a uniform mixture" in said
    assert "from −0.0004 (orange) over 0 (light) to +0.0004 (blue, dark)" in said
    same = Alpha.of(("movie", "book"), layers((0.5, 0.5)))
    said = words(alpha_section(made_run({"pi": 0.5}, alpha=same)))
    assert "The mixture is uniform: α is 0.5000 for each of 2 experts" in said


def test_the_task_graph_has_a_legend_and_widths_in_proportion() -> None:
    names = ("movie", "book", "tweets")
    matrix = np.array([[1.0, 0.6, 0.3], [0.6, 1.0, 0.45], [0.3, 0.45, 1.0]])
    svg = graph(Neighbourhood("movie", names, matrix, np.zeros((2, 4)), (), 2))
    for text in (
        "target: movie",
        "task of the pool",
        "least similarity: 0.300",
        "greatest similarity: 0.600",
    ):
        assert text in svg
    strokes = [float(width) for width in re.findall(r"stroke-width: ([\d.]+)", svg)]
    widths = {width for width in strokes if width in (5.0, 2.5, 3.75)}
    assert widths == {5.0, 2.5, 3.75}


def test_a_run_under_the_majority_class_says_so() -> None:
    under = verdict(
        made_run({"majority": 0.7, "backbone": 0.5, "probe": 0.5, "own_expert": 0.6}), None
    )
    assert "Its accuracy 0.600 is under always the commonest label (0.700)" in under
    assert "logistic probe" not in under
    assert "is under" not in verdict(
        made_run({"majority": 0.6, "backbone": 0.5, "own_expert": 0.6}), None
    )


def test_the_settings_say_which_class_priors_decide() -> None:
    found = {
        "source": "unlabelled",
        "shares": {"no": 0.2, "yes": 0.8},
        "rows": 200,
        "temperature": 1.25,
        "held_out_rows": 16,
    }
    run = made_run({"own_expert": 0.5})
    page = settings_section(replace(run, provenance={**run.provenance, "class_priors": found}))
    assert (
        "no 0.200, yes 0.800 (estimated from 200 rows without labels; temperature 1.25 from 16 "
        "held-out rows)" in page
    )
    assert "class priors" not in settings_section(run)
