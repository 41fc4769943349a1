"""The decision of interpolation, explained by the numbers that it was made with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pidep.files.html import definitions, paragraph, table
from pidep.lab.report.html import number_text, signed
from pidep.tuning.run_folder import METHODS, Run

__all__ = ["decision_section"]

_CANDIDATES = {
    **METHODS,
    "in_context": "own expert, learned in the mixture",
    "joint": "joint training of all experts",
    # Written by versions up to 0.1; old runs can still be reported.
    "own_expert_harder": "own expert, high rate",
    "joint_harder": "joint training of all experts, high rate",
    "own_expert_high_rate": "own expert, high rate",
    "joint_high_rate": "joint training of all experts, high rate",
    "mixture": "average of own expert, uniform and in context",
}


def decision_section(run: Run) -> str:
    """The decision of interpolation, and the losses behind it."""
    found = run.decision
    if found is None:
        return paragraph(
            "Nothing was interpolated: the run had no neighbours, so its own expert is the result."
            if not run.neighbours
            else "–"
        )
    chosen = str(found.get("chosen", "?"))
    label = (
        _CANDIDATES.get(chosen, chosen)
        if found.get("policy") == "auto"
        else "the mixture as it was asked for"
    )
    body = definitions(
        [
            ("chosen", label),
            ("why", str(found.get("why", "?"))),
            ("policy", str(found.get("policy", "?"))),
            ("held-out rows", str(found.get("rows") or "none")),
        ]
    )
    names = list(dict.fromkeys([*found.get("losses", {}), *found.get("left_out", {})]))
    if not names:
        return body
    rows = [_candidate_row(found, name, chosen) for name in names]
    columns = ["candidate", "held-out loss", "prior", "share", "beside", "lead", "outcome"]
    return body + table(columns, rows, mark=_at(names, chosen)) + _shares_note(found)


def _candidate_row(found: Mapping[str, Any], name: str, chosen: str) -> list[str]:
    """One candidate: its loss, its part in the average, and why it is chosen or not."""
    compared = found.get("comparisons", {}).get(name)
    beside = lead = "–"
    if compared is not None:
        other = _CANDIDATES.get(compared["against"], compared["against"])
        beside = f"{other}, {compared['against_loss']:.5f}"
        lead = signed(compared["lead"])
    return [
        _CANDIDATES.get(name, name),
        number_text(found.get("losses", {}).get(name), 5),
        number_text(found.get("prior", {}).get(name), 4),
        number_text(found.get("weights", {}).get(name), 4),
        beside,
        lead,
        _outcome(found, name, chosen),
    ]


def _outcome(found: Mapping[str, Any], name: str, chosen: str) -> str:
    compared = found.get("comparisons", {}).get(name)
    if name == chosen:
        return "chosen"
    if name in found.get("left_out", {}):
        return str(found["left_out"][name])
    if compared is None:
        return "replaced by a clearly better one" if found.get("comparisons") else "–"
    if compared["needed"] is None:
        return "one held-out row cannot tell"
    if compared["lead"] <= 0:
        return "not better"
    if compared["lead"] <= compared["needed"]:
        return f"better, but not by the {compared['needed']:.4f} that it needs"
    return "clearly better, but not the best of those"


def _shares_note(found: Mapping[str, Any]) -> str:
    if not found.get("evidence"):
        return ""
    return paragraph(
        "Losses are in nats a row. The share of a candidate in the average is in proportion to "
        f"prior · exp(−{found['evidence']:.2f} · loss): the held-out rows count for "
        f"{found['evidence']:.2f} independent rows. A candidate is compared with the one beside "
        "it, row by row. Trained candidates and the one beside them are compared at temperatures "
        "of their own, so a loss beside can differ from the same candidate's loss in its own row."
    )


def _at(names: Sequence[str], name: str) -> int | None:
    return names.index(name) if name in names else None
