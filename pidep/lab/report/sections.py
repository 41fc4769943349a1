"""The sections of the page: what each says about a run, in tables and figures."""

from __future__ import annotations

import json
from html import escape
from typing import TYPE_CHECKING

from pidep.experts.folder import Expert
from pidep.files.html import definitions, paragraph, table
from pidep.lab.report import figures
from pidep.lab.report.html import figure, interval_text, signed
from pidep.lab.report.neighbourhood import Neighbourhood
from pidep.lab.report.predicted import predicted_and_measured
from pidep.lab.report.task_graph import graph
from pidep.similarity.estimate_names import ESTIMATES, how_text
from pidep.tasks.metrics.intervals import Interval, wilson
from pidep.tuning.priors_sentence import priors_sentence
from pidep.tuning.run_folder import METHODS, Run

if TYPE_CHECKING:
    from pidep.lab.report.evaluate import Evaluation, Paths

__all__ = [
    "alpha_section",
    "cost_section",
    "curves_section",
    "metric_name",
    "path_section",
    "provenance_section",
    "result_section",
    "settings_section",
    "similarity_section",
]


def metric_name(run: Run) -> str:
    """The metric of the run, in words."""
    return run.metric.replace("_", " ")


def settings_section(run: Run) -> str:
    """The task, its rows and the settings of the run."""
    config, shots = run.config, run.config.get("shots")
    train_rows = run.provenance.get("data", {}).get("train_rows", "?")
    labels = run.task.get("labels", {})
    rows = [
        ("task", f"{run.task.get('name', run.name)} (asked for as {config.get('task', '?')})"),
        ("labels", ", ".join(f"{name}: “{text}”" for name, text in labels.items())),
        (
            "training rows",
            f"{shots} a label, {train_rows} in all" if shots else f"{train_rows}, {_how_much(run)}",
        ),
        *_cut_texts(run),
        *_class_priors(run),
        ("seed", str(config.get("seed", 0))),
        (
            "kind of expert",
            f"{run.expert.kind}, rank {config.get('rank', '?')}, at {len(run.expert.sites)} sites",
        ),
        ("policy", f"{config.get('policy', '?')}, up to {config.get('top_k', '?')} neighbours"),
        ("backbone", f"{run.expert.backbone}, {run.expert.backbone_digest}"),
    ]
    return definitions(rows)


def _cut_texts(run: Run) -> list[tuple[str, str]]:
    """How many texts `max_length` cuts, where the run recorded it."""
    found = run.provenance.get("cut_texts")
    if not isinstance(found, dict):
        return []
    cut, texts, fitting = (found.get(key) for key in ("cut", "texts", "fitting"))
    if not cut:
        return [("texts cut", f"none of {texts} at {found.get('max_length')} tokens")]
    share = f" ({100 * cut / texts:.0f} %)" if texts else ""
    told = f"{cut} of {texts}{share} at {found.get('max_length')} tokens"
    if not fitting or fitting <= found.get("max_length", 0):
        return [("texts cut", f"{told}, the limit of the backbone")]
    all_fit = found.get("longest", fitting) <= fitting
    rest = "would fit all" if all_fit else "is the limit of the backbone and cuts the fewest"
    return [("texts cut", f"{told}; max_length {fitting} {rest}")]


def _class_priors(run: Run) -> list[tuple[str, str]]:
    """What the answers are decided for, where the run recorded it."""
    found = run.provenance.get("class_priors")
    if not isinstance(found, dict) or not found.get("shares"):
        return []
    return [("class priors", priors_sentence(found))]


def _how_much(run: Run) -> str:
    return "texts alone, no label was read" if run.zero_shot else "full data"


def result_section(run: Run) -> str:
    """The metric of every method on the test rows."""
    if not run.metrics:
        return paragraph("Nothing was measured: the test rows have no labels.")
    against = "own_expert" if "own_expert" in run.metrics else "backbone"
    best = max(run.metrics.values(), default=0.0)
    rows, ways = [], set()
    for method, value in run.metrics.items():
        gain = "" if method == against else signed(value - run.metrics[against])
        found = _interval_of(run, method)
        ways |= {found.method} if found else set()
        rows.append([METHODS[method], f"{value:.4f}", gain or "–", interval_text(found)])
    mark = next(
        (number for number, value in enumerate(run.metrics.values()) if value == best), None
    )
    columns = ["model", metric_name(run), f"against {METHODS[against]}", "95 % interval"]
    note = f"On {run.test_rows} test rows, which nothing was chosen by. The best is marked."
    note += (
        f" The interval ({', '.join(sorted(ways))}) covers the sampling of test rows alone; "
        "another seed or other shots vary more."
        if ways
        else " The run recorded no interval of this metric."
    )
    return table(columns, rows, mark=mark) + paragraph(note)


def _interval_of(run: Run, method: str) -> Interval | None:
    found = run.intervals.get(method)
    # Runs of early versions recorded none; an accuracy and the number of rows give Wilson's.
    if found is None and run.metric == "accuracy" and run.test_rows:
        return wilson(run.metrics[method], run.test_rows)
    return found


def curves_section(run: Run) -> str:
    """The learning curve of every phase."""
    learned = [phase for phase in run.phases if phase.history]
    if not learned:
        return paragraph("Nothing was trained.")
    rows = [
        [
            figures.NAMES_OF_PHASES.get(phase.name, phase.name),
            str(phase.steps),
            str(phase.best_step),
        ]
        for phase in run.phases
    ]
    held = any(entry.held_out is not None for phase in learned for entry in phase.history)
    caption = "Loss of the training batch, at each step or at 50 of many steps" + (
        ", and of the held-out rows at each validation." if held else "; no rows were held back."
    )
    return figure(figures.curves(learned), caption) + table(["phase", "steps", "kept"], rows)


def similarity_section(run: Run, near: Neighbourhood | None) -> str:
    """The neighbours, and the tasks of the pool by similarity."""
    rows = [[name, f"{value:.4f}"] for name, value in run.neighbours.items()]
    body = (
        paragraph(f"Neighbours were chosen {how_text(run.neighbours_by)}.")
        + table(["neighbour taken", ESTIMATES.get(run.neighbours_by, "estimate")], rows)
        + predicted_and_measured(run)
        if rows
        else paragraph("The run took no neighbours.")
    )
    if near is None and run.zero_shot:
        return body + paragraph(
            "Predicted from texts alone: a task without labels has no embedding, so no place in "
            "the pool's graph."
        )
    if near is None:
        return body + paragraph(
            "No pool with other tasks to compare this one with; --pool names one."
        )
    shown = len(near.names) - 1
    caption = (
        "Normalised cosine of the tasks' Fisher embeddings; similar tasks stand beside each other. "
        "In bold, this run's task. "
    )
    caption += "Shade: from {:.3f} (light) to {:.3f} (dark).".format(*near.span)
    if shown + len(near.left_out) < near.pool_size:
        caption += f" The {shown} nearest of {near.pool_size} tasks."
    if near.left_out:
        caption += (
            " Left out, because of another backbone, kind, rank, sites or Fisher: "
            f"{', '.join(near.left_out)}."
        )
    return (
        body
        + figure(figures.similarity(near), caption)
        + figure(
            graph(near),
            "Task graph: the width of a line is in proportion to the similarity of its tasks. "
            "Blue, this run's task and its lines.",
        )
    )


def alpha_section(run: Run) -> str:
    """α by layer and expert, as what differs from a uniform mixture."""
    found = run.alpha
    means = table(
        ["expert", "mean α"],
        [[name, f"{mean:.4f}"] for name, mean in zip(found.experts, found.mean, strict=False)],
    )
    if not found.sites or len(found.experts) < 2:
        return means + paragraph("One expert, so α is 1 everywhere.")
    uniform = 1 / len(found.experts)
    most = figures.most_off_uniform(found)
    if most < figures.EQUAL:
        return means + paragraph(
            f"The mixture is uniform: α is {uniform:.4f} for each of {len(found.experts)} experts "
            "at every site."
        )
    caption = (
        f"α minus {uniform:.4f}, its value in a uniform mixture, by layer (down) and place in the "
        "layer (across); each site's α sum to 1. "
        f"Shade: from −{most:.4f} (orange) over 0 (light) to +{most:.4f} (blue, dark)."
    )
    return figure(figures.alpha(found), caption) + means


def path_section(found: Paths | None) -> str:
    """Loss and metric along the lines between experts."""
    if found is None:
        return paragraph("Not measured; pidep report --paths does.")
    rows = [
        [
            f"own expert → {path.end}",
            f"{path.points[0].loss:.4f}",
            f"{path.points[-1].loss:.4f}",
            f"{path.best.loss:.4f}",
            f"{path.best.t:.1f}",
            f"{path.barrier:.4f}",
        ]
        for path in found.found
    ]
    caption = (
        f"θ(t) = (1 − t)·θ₀ + t·θ₁ from the own expert, as mixtures, on {found.num_rows} "
        f"{found.rows} rows. The barrier is the most that "
        "the loss rises above the straight line between its ends; 0 means no barrier."
    )
    lines = table(["line", "loss at t = 0", "loss at t = 1", "least loss", "at t", "barrier"], rows)
    missing = (
        paragraph(f"Not in the pool as they were mixed: {', '.join(found.missing)}.")
        if found.missing
        else ""
    )
    return figure(figures.paths(found), caption) + lines + missing


def cost_section(run: Run, evaluation: Evaluation | None) -> str:
    """Seconds by phase, and parameters."""
    total = (
        evaluation.backbone_parameters
        if evaluation
        else run.provenance.get("backbone", {}).get("parameters")
    )
    rows = [("seconds in all", f"{run.seconds:.1f}")]
    rows += [
        (f"seconds: {name.replace('_', ' ')}", f"{seconds:.1f}")
        for name, seconds in run.seconds_by_phase.items()
    ]
    if not run.seconds_by_phase:
        rows.append(("seconds by phase", "not recorded by this run"))
    for name, expert in run.experts.items():
        count = _num_parameters(expert)
        share = f", {100 * count / total:.2f} % of the backbone's" if total else ""
        rows.append(
            (
                f"parameters: {name}{' as one expert' if expert is not run.own else ''}",
                f"{count:,}{share}",
            )
        )
    rows.append(
        (
            "parameters: backbone",
            f"{total:,}" if total else "not counted (--no-evaluate loads no backbone)",
        )
    )
    return definitions(rows)


def _num_parameters(expert: Expert) -> int:
    return sum(array.size for tensors in expert.sites.values() for array in tensors.values())


def provenance_section(run: Run) -> str:
    """Digests, versions and all settings."""
    found = run.provenance
    data = found.get("data", {})
    rows = [
        ("run folder", str(run.folder)),
        ("expert", run.digest),
        *((("own expert", run.own.digest),) if run.own else ()),
        *((f"mixed: {name}", digest) for name, digest in run.mixture_of.items()),
        ("training rows", str(data.get("train", "?"))),
        ("test rows", str(data.get("test", "?"))),
        *((name, str(number)) for name, number in found.get("versions", {}).items()),
        ("python", str(found.get("python", "?"))),
    ]
    config = escape(json.dumps(run.config, indent=2, ensure_ascii=False))
    return (
        definitions(rows)
        + f"<details open><summary>Settings</summary><pre>{config}</pre></details>"
    )
