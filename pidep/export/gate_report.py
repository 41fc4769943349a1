"""The gate's report beside an entry: JSON for tools, and one self-contained HTML page."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from html import escape
from importlib.metadata import version
from pathlib import Path
from string import Template

from pidep.artifacts.bank import BankRecord
from pidep.artifacts.gate_report import GatedExpert, GateReport
from pidep.artifacts.left_out import LeftOut
from pidep.artifacts.merged import MergedRecord
from pidep.artifacts.names import GATE_PAGE
from pidep.artifacts.parity import Parity
from pidep.export.gate_sample import Gated
from pidep.export.recipe import Recipe
from pidep.files.atomic_write import write_text
from pidep.files.html import definitions, paragraph, table
from pidep.files.page_style import STYLE

__all__ = ["gate_page", "write_gate_report"]

_PACKAGES = ("numpy", "onnx", "onnxruntime", "onnxscript", "pidep", "torch", "transformers")
_HIDDEN = "not kept; export with --keep-rows to see it"
_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>Parity gate of $model</title>
<style>$style</style>
</head>
<body>
<header>
<h1>Parity gate of $model</h1>
<p>$summary</p>
</header>
<main>
$sections
</main>
<footer><p>Written by pidep export. The same figures are in gate_report.json.</p></footer>
</body>
</html>
""")


def write_gate_report(
    entry: Path,
    gated: Mapping[str, Gated],
    recipe: Recipe,
    record: BankRecord | MergedRecord,
    *,
    with_texts: bool,
) -> None:
    """Write `gate_report.json` and `gate_report.html` into a model's folder.

    Args:
        with_texts: whether the worst rows are shown. An entry is published, and rows may be
            private.
    """
    bounds = recipe.tolerance
    versions = {name: _version(name) for name in _PACKAGES}
    report = GateReport(
        entry=record.entry_digest or "",
        backbone=record.backbone_digest,
        recipe=recipe.name,
        precision=recipe.precision,
        max_abs=bounds.max_abs,
        argmax_flips=bounds.argmax_flips,
        metric_drop=bounds.metric_drop,
        other_texts=bounds.other_texts,
        versions={"python": platform.python_version(), **versions},
        experts={name: _expert(one, with_texts=with_texts) for name, one in gated.items()},
        left_out=record.left_out if isinstance(record, BankRecord) else None,
    )
    report.write(entry)
    form = "pidep_bank" if isinstance(record, BankRecord) else record.expert
    write_text(entry / GATE_PAGE, gate_page(report, form))


def _version(package: str) -> str:
    # onnxruntime-gpu is the same package under another name.
    for name in (package, f"{package}-gpu"):
        try:
            return version(name)
        except ImportError:
            continue
    return "unknown"


def _expert(gated: Gated, *, with_texts: bool) -> GatedExpert:
    parity, labels = gated.parity, gated.sample.labels
    row = parity.worst_row
    answers = None
    if row is not None and labels:
        torch, graph = (labels[logits.index(max(logits))] for logits in (row.torch, row.exported))
        answers = (torch, graph)
    return GatedExpert(
        digest=gated.sample.digest,
        labels=labels,
        parity=parity,
        worst_text=gated.worst_text if with_texts else None,
        worst_answers=answers,
        worst_slice=parity.worst_slice,
    )


def gate_page(report: GateReport, model: str) -> str:
    """The report as one HTML file without scripts or downloads.

    Args:
        model: what the page calls the entry.
    """
    count = len(report.experts)
    summary = (
        f"{count} expert{'s' * (count != 1)} answered real rows of their task in the exported "
        "graph as in PyTorch, within the bounds of the recipe."
    )
    sections = [_section("All experts", _overview(report))]
    if report.left_out:
        sections.append(_section("Left out", _left_out(report.left_out)))
    sections += [_section(f"Expert {name}", _details(one)) for name, one in report.experts.items()]
    sections.append(_section("Bounds and versions", _facts(report)))
    return _PAGE.substitute(
        model=escape(model), style=STYLE, summary=escape(summary), sections="\n".join(sections)
    )


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>\n{body}\n</section>"


def _overview(report: GateReport) -> str:
    columns = ["expert", "max abs", "relative", "flips", "metric", "PyTorch", "graph", "effect"]
    columns += ["rows"]
    rows = [[name, *_figures(one.parity)] for name, one in report.experts.items()]
    return table(columns, rows) + paragraph(
        "Max abs: the largest difference of a logit. Relative: to PyTorch's logit. Flips: rows "
        "whose best label differs. Effect: how far the expert moves a logit of the bare backbone; "
        "the graph's error is at most half of it."
    )


def _left_out(experts: Mapping[str, LeftOut]) -> str:
    columns = ["expert", "served in fp32 by model", "refused because", "flips", "PyTorch", "graph"]
    rows = []
    for name, one in experts.items():
        figures = ["–"] * 3 if one.parity is None else _figures(one.parity)
        flips, torch, graph = figures if one.parity is None else (figures[at] for at in (2, 4, 5))
        rows.append([name, one.model, f"{one.precision}: {one.reason}", flips, torch, graph])
    return table(columns, rows)


def _figures(parity: Parity) -> list[str]:
    return [
        f"{parity.max_abs:.2e}",
        f"{parity.max_relative:.2e}",
        str(parity.argmax_flips),
        parity.metric,
        f"{parity.metric_torch:.4f}",
        f"{parity.metric_exported:.4f}",
        "–" if parity.effect is None else f"{parity.effect:.3g}",
        str(parity.rows),
    ]


def _details(one: GatedExpert) -> str:
    row, facts = one.parity.worst_row, [("digest", one.digest)]
    if (made := one.parity.generated) is not None:
        facts += [
            ("generated texts", f"{made.same} of {made.rows} are PyTorch's"),
            (
                f"{made.metric} of them",
                f"{made.metric_torch:.4f} in PyTorch, {made.metric_exported:.4f} in the graph",
            ),
        ]
    body = definitions(facts)
    if row is not None:
        text = _HIDDEN if one.worst_text is None else one.worst_text
        facts = [
            ("worst row", f"{row.row}{f' ({row.where})' if row.where else ''}"),
            ("text", text),
        ]
        if one.worst_answers is not None:
            torch, graph = one.worst_answers
            facts.append(("answers", f"{torch} in PyTorch, {graph} in the graph"))
        names = one.labels or [f"candidate {at}" for at in range(1, len(row.torch) + 1)]
        logits = [
            [name, f"{right:.6f}", f"{found:.6f}", f"{abs(right - found):.2e}"]
            for name, right, found in zip(names, row.torch, row.exported, strict=True)
        ]
        body += definitions(facts)
        body += table(["logit of the worst row", "PyTorch", "graph", "difference"], logits)
    if one.worst_slice is None:
        return body + paragraph("All rows are of one label, length and modality.")
    slices = [
        [f"{part.by}: {part.name}", str(part.rows), str(part.argmax_flips), f"{part.max_abs:.2e}"]
        for part in one.parity.slices
    ]
    mark = one.parity.slices.index(one.worst_slice)
    return body + table(["slice", "rows", "flips", "max abs"], slices, mark=mark)


def _facts(report: GateReport) -> str:
    return definitions(
        [
            ("recipe", f"{report.recipe} ({report.precision})"),
            ("max abs, at most", f"{report.max_abs:g}"),
            ("flips, at most", str(report.argmax_flips)),
            ("loss of the metric, at most", f"{report.metric_drop:g}"),
            ("share of other generated texts, at most", f"{report.other_texts:g}"),
            ("entry", report.entry),
            ("backbone", report.backbone),
            *sorted(report.versions.items()),
        ]
    )
