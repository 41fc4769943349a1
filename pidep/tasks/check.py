"""Every problem of a task's data, found before any training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol

from pidep.errors import ImageError, TaskError
from pidep.inputs.places import Kind, Place, RowError
from pidep.inputs.row import Input, as_row, text_of
from pidep.inputs.tokenize import Tokenize
from pidep.tasks.answers import label_of, targets_of
from pidep.tasks.data import UNLABELLED, content_of, is_test
from pidep.tasks.hub import with_labels
from pidep.tasks.lengths import NO_TOKEN, TextLengths, lengths_of, same_tokens
from pidep.tasks.packaged import Side
from pidep.tasks.row_inputs import input_of
from pidep.tasks.sources import Source, sources_of
from pidep.tasks.task import Task

__all__ = ["Problem", "Reader", "TaskCheck", "check_task"]

Severity = Literal["error", "warning"]


class Reader(Protocol):
    """The parts of a backbone that decide how it reads texts. Every backbone has them."""

    @property
    def tokenizer_json(self) -> str:
        """The tokenizer."""

    @property
    def max_positions(self) -> int:
        """Longest text, in tokens."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a task's data."""

    severity: Severity
    """Tuning refuses a task with an `error`; a `warning` makes its result worse."""
    kind: Kind
    message: str
    """What is wrong, without the place."""
    source: str = ""
    """The file, dataset or side; empty for the task as a whole."""
    row: int | None = None
    line: int | None = None

    def __str__(self) -> str:
        if self.row is None:
            return f"{self.source}: {self.message}" if self.source else self.message
        return f"{Place(self.source, self.row, self.line)}: {self.message}"


@dataclass(frozen=True)
class TaskCheck:
    """What a task's data hold, and everything that is wrong with them."""

    task: str
    problems: tuple[Problem, ...]
    rows: dict[Side, int]
    """Rows that training and evaluation would see."""
    labels: dict[str, dict[Side, int]]
    """Rows of each label; empty for a task whose answers are no labels."""
    cut_texts: TextLengths | None
    """Lengths of the texts; None without a backbone or without texts."""

    @property
    def errors(self) -> int:
        """Number of problems that tuning refuses."""
        return sum(problem.severity == "error" for problem in self.problems)

    @property
    def warnings(self) -> int:
        """Number of the other problems."""
        return len(self.problems) - self.errors

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "task": self.task,
            "errors": self.errors,
            "warnings": self.warnings,
            "rows": self.rows,
            "labels": self.labels,
            "cut_texts": None if self.cut_texts is None else self.cut_texts.to_json(),
            "problems": [asdict(problem) for problem in self.problems],
        }


def check_task(
    task: Task, backbone: Reader | None = None, *, max_length: int | None = None
) -> TaskCheck:
    """Read all rows of a task and collect every problem instead of raising the first one.

    Args:
        backbone: the backbone whose tokenizer counts tokens. Without it, cut texts are not found.
        max_length: the limit that the texts are compared with; the task's own when absent.
    """
    found = _Findings()
    try:
        task = with_labels(task)
        for source in sources_of(task):
            _read(task, source, found)
    except TaskError as error:
        found.add("error", "file", str(error))
    sides = _sides(task, found)
    lengths = None
    if backbone is not None:
        lengths = _lengths(task, backbone, max_length or task.max_length, found)
    labels = _classes(task, sides, found)
    rows: dict[Side, int] = {"train": len(sides["train"]), "test": len(sides["test"])}
    return TaskCheck(task.name, tuple(found.problems), rows, labels, lengths)


@dataclass(frozen=True)
class _Row:
    """A row that could be read."""

    side: Side
    place: Place
    asked: Input
    label: int
    content: tuple[str, ...]


@dataclass
class _Findings:
    problems: list[Problem] = field(default_factory=list)
    rows: list[_Row] = field(default_factory=list)
    sources: int = 0
    unread: bool = False
    """Whether a source could not be read to its end, so that counts say nothing."""

    def add(self, severity: Severity, kind: Kind, message: str, place: Place | None = None) -> None:
        where = {} if place is None else asdict(place)
        self.problems.append(Problem(severity, kind, message, **where))


def _read(task: Task, source: Source, found: _Findings) -> None:
    """Read a source to its end, or to where the file stops being readable."""
    found.sources += 1
    count = 0
    try:
        for place, row in source.rows:
            count += 1
            _read_row(task, source.side, place, row, found)
    except (TaskError, ImageError) as error:
        found.unread = True
        found.add("error", "file", str(error))
        return
    if count == 0:
        found.add("error", "file", f"{source.name}: no rows")


def _read_row(task: Task, side: Side, place: Place, row: Any, found: _Findings) -> None:
    if isinstance(row, RowError):
        _add_error(row, place, found)
        return
    asked: Input | None = None
    label: int | None = UNLABELLED
    content: tuple[str, ...] = ()
    faults = len(found.problems)
    # A row can have several problems. A text that is wrong must not hide a label that is wrong.
    try:
        asked = input_of(task.template, row, place)
        content = content_of(asked)
    except (TaskError, ImageError) as error:
        _add_error(error, place, found)
    # Candidates and boxes can only be read beside an input.
    if asked is not None or (isinstance(row, dict) and task.labels):
        try:
            label = _answer(task, row, asked, place)
        except (TaskError, ImageError) as error:
            _add_error(error, place, found)
    if asked is not None and label is not None and len(found.problems) == faults:
        found.rows.append(_Row(side, place, asked, label, content))


def _answer(task: Task, row: dict[str, Any], asked: Input | None, place: Place) -> int | None:
    if task.target is None:
        return label_of(task, row, place)
    assert asked is not None
    targets_of(task, row, asked, place)
    return UNLABELLED


def _add_error(error: TaskError | ImageError, place: Place, found: _Findings) -> None:
    kind: Kind = error.kind if isinstance(error, RowError) else "row"
    found.add("error", kind, str(error).removeprefix(f"{place}: "), place)


def _sides(task: Task, found: _Findings) -> dict[Side, list[_Row]]:
    """The rows of each side as tuning takes them; finds equal rows on the way."""
    sides: dict[Side, list[_Row]] = {"train": [], "test": []}
    single = found.sources < 2
    for row in found.rows:
        side: Side = "test" if single and is_test(task, row.asked) else row.side
        sides[side].append(row)
    test = {row.content: row for row in sides["test"]}
    kept = [row for row in sides["train"] if row.content not in test]
    for row in sides["train"]:
        if row.content in test:
            other = _named(test[row.content].place, row.place)
            message = f"is also a test row, {other}; training leaves it out"
            found.add("warning", "shared", message, row.place)
    if sides["train"] and not kept:
        found.add("error", "shared", "all training rows are also test rows; give other test rows")
    for side in ("train", "test"):
        _duplicates(task, sides[side], found)
    sides["train"] = kept
    return sides


def _named(other: Place, place: Place) -> str:
    """Another row's place as a message about a row calls it."""
    return str(other).removeprefix(f"{place.source}, ")


def _duplicates(task: Task, rows: list[_Row], found: _Findings) -> None:
    """Equal rows within a side, and equal rows with different labels."""
    names = list(task.labels)
    first: dict[tuple[str, ...], _Row] = {}
    for row in rows:
        other = first.setdefault(row.content, row)
        if other is row:
            continue
        what = f"is the same as {_named(other.place, row.place)}"
        if other.label != row.label and task.labels:
            what += f", which has the label {names[other.label]!r}; here it is {names[row.label]!r}"
        found.add("warning", "duplicate", what, row.place)


def _classes(
    task: Task, sides: Mapping[Side, list[_Row]], found: _Findings
) -> dict[str, dict[Side, int]]:
    """Rows of each label and side; finds labels without rows, and empty sides."""
    counts = {side: Counter(row.label for row in rows) for side, rows in sides.items()}
    if found.unread or not found.sources:
        pass  # the rows that are missing may be in the part that was not read
    elif not sides["train"] or not sides["test"]:
        empty = "training" if not sides["train"] else "test"
        found.add("error", "classes", f"no {empty} rows are left; give more rows")
    else:
        for number, name in enumerate(task.labels):
            if not counts["train"][number]:
                found.add("error", "classes", f"no training row has the label {name!r}")
            elif not counts["test"][number]:
                found.add("warning", "classes", f"no test row has the label {name!r}")
    return {
        name: {side: counts[side][number] for side in counts}
        for number, name in enumerate(task.labels)
    }


def _lengths(task: Task, backbone: Reader, max_length: int, found: _Findings) -> TextLengths | None:
    """Token counts of the texts; finds cut texts, and labels that become the same tokens."""
    tokenize = Tokenize(backbone.tokenizer_json)
    twins = same_tokens(task.labels, tokenize, most=backbone.max_positions)
    if twins is not None:
        found.add(
            "error",
            "label",
            f"the texts of the labels {twins[0]!r} and {twins[1]!r} have the same tokens; give "
            "them other words",
        )
    rows = [row for row in found.rows if text_of(row.asked)]
    if not rows:
        return None
    most = backbone.max_positions
    limit = min(max_length, most)
    counts = tokenize.lengths([text_of(row.asked) for row in rows])
    for row, count in zip(rows, counts, strict=True):
        if count <= tokenize.special_tokens and as_row(row.asked).image is None:
            found.add("error", "empty", f"its text {NO_TOKEN}", row.place)
        if count > limit:
            message = f"its text has {count:,} tokens and is cut at {limit:,}"
            found.add("warning", "length", message, row.place)
    return lengths_of(counts, max_length=limit, most=most)
