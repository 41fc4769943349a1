"""Compare the output that a page shows with the output of a run.

Words, integers and table cells must be equal. Figures vary between machines, so:

- a figure with a decimal point may differ by up to `TOLERANCE`;
- a figure in exponent form, or with the unit s, ms or kB, may have any value;
- any digest matches any digest;
- the rows of a table may stand in another order, because some tables are sorted by a figure;
- `…` matches any text in a line, and a line with `…` alone matches any number of lines.

Progress lines do not count: how many there are depends on the machine's speed. Widths do not count:
runs of blanks and of horizontal lines are as good as one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

TOLERANCE = 0.15
_TOKEN = re.compile(
    r"(?P<digest>sha256:[0-9a-f]+…?)"
    r"|(?P<loose>-?\d+(?:\.\d+)?e[+-]?\d+|-?\d+(?:\.\d+)?(?= (?:s|ms|kB)\b))"
    r"|(?P<decimal>-?\d+\.\d+)"
    r"|(?P<any>…)"
)
_PROGRESS = re.compile(r"pidep: .*\((\d+:)?\d+:\d\d so far\)")
_DIGEST = r"sha256:(?:[0-9a-f]+…?|…)"
_FIGURE = r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?"


def difference(expected: Sequence[str], found: Sequence[str]) -> str | None:
    """The first difference as a sentence, or None when the outputs agree."""
    wanted, given = _lines(expected), _lines(found)
    reached = _match(wanted, given)
    if reached is None:
        return None
    line, at = reached
    shown = repr(wanted[line]) if line < len(wanted) else "the end of the output"
    got = repr(given[at]) if at < len(given) else "the end of the output"
    return f"expected {shown}, found {got}"


def _lines(text: Sequence[str]) -> list[str]:
    """Lines without their widths; empty ones and progress are left out."""
    lines = [re.sub(r"([━─═])\1+", r"\1", " ".join(line.split())) for line in text]
    return [line for line in lines if line and not _PROGRESS.fullmatch(line)]


def _match(wanted: list[str], given: list[str]) -> tuple[int, int] | None:
    """None when all lines match, else the furthest pair of positions reached."""
    furthest = (0, 0)
    # (line of the page, line of the output) pairs still to try; `…` alone opens several.
    todo, seen = [(0, 0)], set()
    while todo:
        state = todo.pop()
        if state in seen:
            continue
        seen.add(state)
        furthest = max(furthest, state)
        line, at = state
        if line == len(wanted):
            if at == len(given):
                return None
        elif wanted[line] == "…":
            todo.append((line + 1, at))
            if at < len(given):
                todo.append((line, at + 1))
        elif at < len(given) and same_line(wanted[line], given[at]):
            todo.append((line + 1, at + 1))
        elif rows := _same_rows(_table(wanted, line), _table(given, at)):
            todo.append((line + rows, at + rows))
    return furthest


def _table(lines: list[str], start: int) -> list[str]:
    """The rows of a table from a line on, without its border."""
    rows = []
    for line in lines[start:]:
        if not line.startswith("│"):
            break
        rows.append(line)
    return rows


def _same_rows(wanted: list[str], given: list[str]) -> int:
    """The number of rows, when both tables have the same rows in some order; else 0."""
    left = list(given)
    for row in wanted:
        match = next((one for one in left if same_line(row, one)), None)
        if match is None:
            return 0
        left.remove(match)
    return 0 if left else len(wanted)


def same_line(wanted: str, given: str) -> bool:
    """Whether a line of output agrees with a line of a page."""
    pattern, figures, position = "", [], 0
    for token in _TOKEN.finditer(wanted):
        pattern += re.escape(wanted[position : token.start()])
        position = token.end()
        if token["digest"]:
            pattern += _DIGEST
        elif token["loose"]:
            pattern += _FIGURE
        elif token["decimal"]:
            pattern += f"({_FIGURE})"
            figures.append(float(token["decimal"]))
        else:
            pattern += ".*?"
    match = re.fullmatch(pattern + re.escape(wanted[position:]), given)
    if match is None:
        return False
    return all(
        abs(float(found) - figure) <= TOLERANCE + 1e-9
        for found, figure in zip(match.groups(), figures, strict=True)
    )
