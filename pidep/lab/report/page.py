"""The page about a run: one HTML file without downloads or scripts."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from string import Template
from typing import TYPE_CHECKING

from pidep.errors import PidepError
from pidep.files.page_style import STYLE
from pidep.lab.report.answers import classes_section, confusion_section, mistakes_section
from pidep.lab.report.decision import decision_section
from pidep.lab.report.neighbourhood import Neighbourhood
from pidep.lab.report.sections import (
    alpha_section,
    cost_section,
    curves_section,
    path_section,
    provenance_section,
    result_section,
    settings_section,
    similarity_section,
)
from pidep.lab.report.verdict import verdict
from pidep.tuning.run_folder import Run

if TYPE_CHECKING:
    from pidep.lab.report.evaluate import Evaluation

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
    "classes": "Each label",
    "mistakes": "Surest mistakes",
    "cost": "Cost",
    "provenance": "Provenance",
}
_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
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
<footer><p>Written by pidep report.
The method is <a href="$paper">π-Tuning (arXiv 2304.14381)</a>.</p></footer>
</body>
</html>
""")


def _body(run: Run, key: str, make: Callable[[], str]) -> str:
    """A section.

    Raises:
        PidepError: the run's records hold values that pidep does not write.
    """
    try:
        return make()
    except (TypeError, ValueError, KeyError, AttributeError, IndexError) as error:
        reason = " ".join(str(error).split())[:120]
        raise PidepError(
            f"run {run.name!r}: its records cannot be shown as {SECTIONS[key]!r} "
            f"({type(error).__name__}: {reason}); was a file of the run edited? Tune it again"
        ) from error


def page(run: Run, near: Neighbourhood | None, evaluation: Evaluation | None) -> str:
    """The whole page about a run.

    Raises:
        PidepError: the run's records hold values that pidep does not write.
    """
    makers: dict[str, Callable[[], str]] = {
        "asked": lambda: settings_section(run),
        "result": lambda: result_section(run),
        "decision": lambda: decision_section(run),
        "curves": lambda: curves_section(run),
        "similarity": lambda: similarity_section(run, near),
        "alpha": lambda: alpha_section(run),
        "path": lambda: path_section(evaluation.paths if evaluation else None),
        "confusion": lambda: confusion_section(run, evaluation),
        "classes": lambda: classes_section(run, evaluation),
        "mistakes": lambda: mistakes_section(run, evaluation),
        "cost": lambda: cost_section(run, evaluation),
        "provenance": lambda: provenance_section(run),
    }
    bodies = {key: _body(run, key, make) for key, make in makers.items()}
    sections = [
        f'<section aria-labelledby="{key}"><h2 id="{key}">{SECTIONS[key]}</h2>\n{body}\n</section>'
        for key, body in bodies.items()
    ]
    return _PAGE.substitute(
        title=escape(f"{run.name}: a π-Tuning run"),
        style=STYLE,
        summary=escape(verdict(run, evaluation)),
        links="".join(f'<li><a href="#{key}">{title}</a></li>' for key, title in SECTIONS.items()),
        sections="\n".join(sections),
        paper=PAPER,
    )
