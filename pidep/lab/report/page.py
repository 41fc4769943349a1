"""The page: sections of tables and figures. Whatever comes from data passes through `escape`."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from html import escape
from string import Template
from typing import TYPE_CHECKING, Any

from pidep.lab.report import figures
from pidep.lab.report.look import STYLE
from pidep.lab.report.neighbourhood import Neighbourhood
from pidep.lab.report.run import METHODS, Run, num_parameters

if TYPE_CHECKING:
    from pidep.lab.report.evaluate import Confusion, Evaluation, Paths

__all__ = ["SECTIONS", "page"]

PAPER = "https://arxiv.org/abs/2304.14381"
SECTIONS = {
    "asked": "What was asked",
    "result": "Result",
    "decision": "π's decision",
    "curves": "Learning curves",
    "similarity": "Similar tasks",
    "alpha": "α by layer and expert",
    "path": "Along the line between experts",
    "confusion": "Confusion on the test rows",
    "cost": "Cost",
    "provenance": "Provenance",
}
CANDIDATES = {
    **METHODS,
    "in_context": "own expert, learned in the mixture",
    "joint": "all experts trained together",
    "own_expert_harder": "own expert, trained harder",
    "joint_harder": "all experts trained together, harder",
    "mixture": "average of own expert, uniform and in context",
}
_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>$title</title>
<style>$style</style>
</head>
<body>
<header>
<h1>$title</h1>
<p>$summary</p>
<nav aria-label="Sections"><ul>$links</ul></nav>
</header>
<main>
$sections
</main>
<footer><p>Written by pidep report. The method is <a href="$paper">π-Tuning (arXiv 2304.14381)</a>.</p></footer>
</body>
</html>
""")


def page(run: Run, near: Neighbourhood | None, evaluation: Evaluation | None) -> str:
    """The whole page about a run."""
    bodies = {
        "asked": _asked(run),
        "result": _result(run),
        "decision": _decision(run),
        "curves": _curves(run),
        "similarity": _similar(run, near),
        "alpha": _alpha(run),
        "path": _path(evaluation.paths if evaluation else None),
        "confusion": _confusion(run, evaluation.confusions if evaluation else ()),
        "cost": _cost(run, evaluation),
        "provenance": _provenance(run),
    }
    sections = [f'<section aria-labelledby="{key}"><h2 id="{key}">{SECTIONS[key]}</h2>\n{body}\n</section>' for key, body in bodies.items()]
    return _PAGE.substitute(
        title=escape(f"{run.name}: a π-Tuning run"),
        style=STYLE,
        summary=_summary(run),
        links="".join(f'<li><a href="#{key}">{title}</a></li>' for key, title in SECTIONS.items()),
        sections="\n".join(sections),
        paper=PAPER,
    )


def _summary(run: Run) -> str:
    figures_ = ", ".join(f"{METHODS[method]} {value:.3f}" for method, value in run.metrics.items())
    if not figures_:
        return f"{run.test_rows} test rows, without labels: nothing was measured."
    return f"{escape(_metric(run))} on {run.test_rows} test rows: {figures_}."


def _metric(run: Run) -> str:
    return run.metric.replace("_", " ")


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, mark: int | None = None) -> str:
    """Cells are escaped; columns of figures are set right; row `mark` stands out."""
    rows = list(rows)
    looks = ["figure" if at and all(_is_figure(row[at]) for row in rows) else "words" for at in range(len(columns))]
    head = "".join(f'<th scope="col" class="{look}">{escape(column)}</th>' for column, look in zip(columns, looks, strict=True))
    lines = []
    for number, row in enumerate(rows):
        first, *rest = (escape(cell) for cell in row)
        cells = "".join(f'<td class="{look}">{cell}</td>' for cell, look in zip(rest, looks[1:], strict=True))
        lines.append(f'<tr{" class=mark" if number == mark else ""}><th scope="row">{first}</th>{cells}</tr>')
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def _is_figure(cell: str) -> bool:
    return cell[:1] in "+−" or cell[:1].isdigit() or cell == "–"


def _pairs(rows: Iterable[tuple[str, str]]) -> str:
    return "<dl>" + "".join(f"<dt>{escape(term)}</dt><dd>{escape(value)}</dd>" for term, value in rows) + "</dl>"


def _figure(svg: str, caption: str) -> str:
    return f'<figure><div class="scroll">{svg}</div><figcaption>{escape(caption)}</figcaption></figure>'


def _words(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def _asked(run: Run) -> str:
    config, shots = run.config, run.config.get("shots")
    train_rows = run.provenance.get("data", {}).get("train_rows", "?")
    labels = run.task.get("labels", {})
    rows = [
        ("task", f"{run.task.get('name', run.name)} (asked for as {config.get('task', '?')})"),
        ("labels", ", ".join(f"{name}: “{text}”" for name, text in labels.items())),
        ("training rows", f"{shots} a label, {train_rows} in all" if shots else f"{train_rows}, {_how_much(run)}"),
        ("seed", str(config.get("seed", 0))),
        ("kind of expert", f"{run.expert.kind}, size {config.get('rank', '?')}, at {len(run.expert.sites)} sites"),
        ("policy", f"{config.get('policy', '?')}, up to {config.get('top_k', '?')} neighbours"),
        ("backbone", f"{run.expert.backbone}, {run.expert.backbone_digest}"),
    ]
    return _pairs(rows)


def _how_much(run: Run) -> str:
    return "texts alone, no label was read" if run.zero_shot else "full data"


def _result(run: Run) -> str:
    if not run.metrics:
        return _words("Nothing was measured: the test rows have no labels.")
    against = "own_expert" if "own_expert" in run.metrics else "backbone"
    accuracy = run.metric == "accuracy"
    best = max(run.metrics.values(), default=0.0)
    rows = []
    for method, value in run.metrics.items():
        gain = "" if method == against else _signed(value - run.metrics[against])
        rows.append([METHODS[method], f"{value:.4f}", gain or "–"] + ([_interval(value, run.test_rows)] if accuracy else []))
    mark = next((number for number, value in enumerate(run.metrics.values()) if value == best), None)
    columns = ["model", _metric(run), f"against {METHODS[against]}"] + (["95 % interval"] if accuracy else [])
    note = f"On {run.test_rows} test rows, which nothing was chosen by. The best is marked."
    if accuracy:
        note += " The interval (Wilson) is of the sampling of test rows alone: another seed or other shots vary more."
    return _table(columns, rows, mark=mark) + _words(note)


def _signed(value: float) -> str:
    return f"{'−' if value < 0 else '+'}{abs(value):.4f}"


def _interval(share: float, rows: int) -> str:
    """Wilson's 95 % interval of a share."""
    if rows < 1:
        return "–"
    z = 1.96
    middle, scale = share + z * z / (2 * rows), 1 + z * z / rows
    half = z * math.sqrt(share * (1 - share) / rows + (z / (2 * rows)) ** 2)
    return f"{(middle - half) / scale:.3f} to {(middle + half) / scale:.3f}"


def _decision(run: Run) -> str:
    found = run.decision
    if found is None:
        return _words(
            "Nothing was interpolated: the run had no neighbours, so its own expert is the result." if not run.neighbours else "–"
        )
    chosen = str(found.get("chosen", "?"))
    label = CANDIDATES.get(chosen, chosen) if found.get("policy") == "auto" else "the mixture as it was asked for"
    body = _pairs(
        [
            ("chosen", label),
            ("why", str(found.get("why", "?"))),
            ("policy", str(found.get("policy", "?"))),
            ("held-out rows", str(found.get("rows") or "none")),
        ]
    )
    losses, weights = found.get("losses", {}), found.get("weights", {})
    if losses or weights:
        names = list(dict.fromkeys([*losses, *weights]))
        rows = [[CANDIDATES.get(name, name), _number(losses.get(name), 5), _number(weights.get(name), 4)] for name in names]
        body += _table(["candidate", "held-out loss (nats a row)", "share in the mixture"], rows, mark=_at(names, chosen))
    return body


def _at(names: Sequence[str], name: str) -> int | None:
    return names.index(name) if name in names else None


def _number(value: Any, digits: int) -> str:
    return "–" if value is None else f"{float(value):.{digits}f}"


def _curves(run: Run) -> str:
    learned = [phase for phase in run.phases if phase.history]
    if not learned:
        return _words("Nothing was trained.")
    rows = [[figures.NAMES_OF_PHASES.get(phase.name, phase.name), str(phase.steps), str(phase.best_step)] for phase in run.phases]
    held = any(entry.held_out is not None for phase in learned for entry in phase.history)
    caption = "Loss of the training batch at each validation" + (", and of the held-out rows." if held else "; no rows were held back.")
    return _figure(figures.curves(learned), caption) + _table(["phase", "steps", "kept"], rows)


def _similar(run: Run, near: Neighbourhood | None) -> str:
    rows = [[name, f"{value:.4f}"] for name, value in run.neighbours.items()]
    body = _table(["neighbour taken", "similarity"], rows) if rows else _words("The run took no neighbours.")
    if near is None and run.zero_shot:
        return body + _words("Predicted from texts alone: a task without labels has no embedding, so no place in the pool's graph.")
    if near is None:
        return body + _words("No pool with other tasks to compare this one with; --pool names one.")
    shown = len(near.names) - 1
    caption = "Normalised cosine of the tasks' Fisher embeddings; alike tasks stand beside each other. In bold, this run's task. "
    caption += "Shade: from {:.3f} (light) to {:.3f} (dark).".format(*near.span)
    if shown + len(near.left_out) < near.pool_size:
        caption += f" The {shown} nearest of {near.pool_size} tasks."
    if near.left_out:
        caption += f" Left out, as of another backbone, kind, rank, sites or Fisher: {', '.join(near.left_out)}."
    return (
        body
        + _figure(figures.similarity(near), caption)
        + _figure(figures.graph(near), "Task graph: the wider a line, the more alike its tasks. Blue, this run's task and its lines.")
    )


def _alpha(run: Run) -> str:
    found = run.alpha
    means = _table(["expert", "mean α"], [[name, f"{mean:.4f}"] for name, mean in zip(found.experts, found.mean, strict=False)])
    if not found.sites or len(found.experts) < 2:
        return means + _words("One expert, so α is 1 everywhere.")
    highest = max(weight for weights in found.sites.values() for weight in weights)
    caption = (
        "α of each expert, by layer (down) and place in the layer (across); each site's sum to 1. "
        f"Shade: from 0 (light) to {highest:.2f} (dark)."
    )
    return _figure(figures.alpha(found), caption) + means


def _path(found: Paths | None) -> str:
    if found is None:
        return _words("Not walked; pidep report --path does.")
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
        f"θ(t) = (1 − t)·θ₀ + t·θ₁ from the own expert, as mixtures, on {found.num_rows} {found.rows} rows. The barrier is how far the "
        "loss rises, at most, above the straight line between its ends; 0 means that nothing lies in the way."
    )
    table = _table(["line", "loss at t = 0", "loss at t = 1", "least loss", "at t", "barrier"], rows)
    missing = _words(f"Not in the pool as they were mixed: {', '.join(found.missing)}.") if found.missing else ""
    return _figure(figures.paths(found), caption) + table + missing


def _confusion(run: Run, found: Sequence[Confusion]) -> str:
    if not found:
        return _words("Not computed: --no-evaluate." if run.metrics else "Not computed: the test rows have no labels.")
    kept = {"own expert": "own_expert", "π": "pi", "zero-shot mixture": "zero_shot"}
    parts = []
    for number, one in enumerate(found):
        again = run.metrics.get(kept[one.model])
        agrees = "as the run says" if again is not None and abs(again - one.score) < 1e-9 else f"the run says {_number(again, 4)}"
        svg = figures.confusion(one, run.labels or [f"candidate {place}" for place in range(len(one.counts))], name=f"confusion-{number}")
        shade = "Shade: share of the true label's rows, 0 (light) to 1 (dark)."
        parts.append(_figure(svg, f"{one.model}: {_metric(run)} {one.score:.4f}, {agrees}. {shade}"))
    return f'<div class="beside">{"".join(parts)}</div>'


def _cost(run: Run, evaluation: Evaluation | None) -> str:
    total = evaluation.backbone_parameters if evaluation else run.provenance.get("backbone", {}).get("parameters")
    rows = [("seconds in all", f"{run.seconds:.1f}")]
    rows += [(f"seconds: {name.replace('_', ' ')}", f"{seconds:.1f}") for name, seconds in run.seconds_by_phase.items()]
    if not run.seconds_by_phase:
        rows.append(("seconds by phase", "not recorded by this run"))
    for name, expert in run.experts.items():
        count = num_parameters(expert)
        share = f", {100 * count / total:.2f} % of the backbone's" if total else ""
        rows.append((f"parameters: {name}{' as one expert' if expert is not run.own else ''}", f"{count:,}{share}"))
    rows.append(("parameters: backbone", f"{total:,}" if total else "not counted (--no-evaluate loads no backbone)"))
    return _pairs(rows)


def _provenance(run: Run) -> str:
    found = run.provenance
    data = found.get("data", {})
    rows = [
        ("run folder", str(run.folder)),
        ("expert", run.expert.digest),
        *((("own expert", run.own.digest),) if run.own else ()),
        *((f"mixed: {name}", digest) for name, digest in run.mixture_of.items()),
        ("training rows", str(data.get("train", "?"))),
        ("test rows", str(data.get("test", "?"))),
        *((name, str(number)) for name, number in found.get("versions", {}).items()),
        ("python", str(found.get("python", "?"))),
    ]
    config = escape(json.dumps(run.config, indent=2, ensure_ascii=False))
    return _pairs(rows) + f"<details open><summary>Settings</summary><pre>{config}</pre></details>"
