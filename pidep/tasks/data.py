"""Rows to inputs and label numbers; splits without leakage; few shots."""

from __future__ import annotations

import hashlib
import logging
import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from pidep.errors import TaskError
from pidep.inputs.cells import is_missing
from pidep.inputs.places import Place, RowError
from pidep.inputs.row import Input, Row, picture_digest, text_of
from pidep.tasks.answers import label_of, targets_of
from pidep.tasks.by_hash import held_out
from pidep.tasks.hub import with_labels
from pidep.tasks.row_inputs import input_of
from pidep.tasks.sources import sources_of
from pidep.tasks.task import Task

__all__ = [
    "UNLABELLED",
    "Split",
    "TaskData",
    "content_of",
    "data_digest",
    "few_shot",
    "few_shot_beside",
    "hold_out",
    "is_test",
    "limit",
    "load_data",
    "load_texts",
    "parse_rows",
    "without_leakage",
]

_log = logging.getLogger(__name__)

UNLABELLED = -1
"""The label number of a row whose label was not read or does not exist."""


@dataclass(frozen=True)
class Split:
    """Inputs and label numbers, side by side. A text alone is a `str`."""

    rows: list[Input]
    labels: list[int]
    """`UNLABELLED` where texts answer the rows."""
    targets: list[tuple[str, ...]] = field(default_factory=list)
    """The right texts of every row, where texts answer the rows; empty for other tasks, or if not
    read.
    """

    def take(self, rows: Iterable[int]) -> Split:
        """The rows with the given numbers."""
        chosen = list(rows)
        targets = [self.targets[row] for row in chosen] if self.targets else []
        return Split(
            [self.rows[row] for row in chosen], [self.labels[row] for row in chosen], targets
        )


@dataclass(frozen=True)
class TaskData:
    """Training rows, and test rows that only evaluation sees."""

    train: Split
    test: Split


def is_test(task: Task, row: Input) -> bool:
    """Whether a row is a test row. Its own hash decides, so equal rows are on one side."""
    return held_out(_asked(row), fraction=task.test_fraction, seed=task.split_seed)


def _asked(row: Input) -> str:
    """The text that decides a row's side: the picture's digest where there is one."""
    if isinstance(row, Row) and row.image is not None:
        return picture_digest(row.image, where=row.where)
    return text_of(row)


def _split(task: Task, rows: Split) -> TaskData:
    sides = [is_test(task, row) for row in rows.rows]
    return TaskData(
        # By hash and not by position: a row stays on its side when rows are added or reordered.
        train=rows.take(row for row, test in enumerate(sides) if not test),
        test=rows.take(row for row, test in enumerate(sides) if test),
    )


def load_data(task: Task) -> TaskData:
    """Training and test rows of a task.

    Raises:
        TaskError, ImageError: a file, column, label, text or image is wrong; says where.
    """
    task = with_labels(task)
    train, *test = [parse_rows(task, one.rows, one.name) for one in sources_of(task)]
    data = _sides(task, train, test)
    shared = len(train.rows) - len(data.train.rows) if test else 0
    if shared:
        _log.warning(
            "task %r: %d of %d training rows are also test rows; training leaves them out",
            task.name,
            shared,
            len(train.rows),
        )
    return data


def load_texts(task: Task) -> TaskData:
    """The same rows for a target without labels. Labels of training rows are not read.

    Test rows keep their labels for evaluation. If none has one, all are `UNLABELLED`.

    Raises:
        TaskError, ImageError: a file, column, text or image is wrong, or a test row lacks a label
            where others have one; says where.
    """
    task = with_labels(task)
    sides = [(list(one.rows), one.name) for one in sources_of(task)]
    train, *test = [parse_rows(task, rows, name, labelled=False) for rows, name in sides]
    data = _sides(task, train, test)
    rows, name = sides[-1]
    tested = (
        rows
        if test
        else [found for found, row in zip(rows, train.rows, strict=True) if is_test(task, row)]
    )
    answers = [task.label] if task.target is None else task.target_columns
    # CSV writes a missing label as an empty field.
    if all(_unanswered(row.get(column)) for _, row in tested for column in answers):
        return data
    return TaskData(data.train, parse_rows(task, tested, name))


def _unanswered(value: Any) -> bool:
    return is_missing(value) or (isinstance(value, str) and not value.strip())


def parse_rows(
    task: Task, rows: Iterable[tuple[Place, Any]], name: str, *, labelled: bool = True
) -> Split:
    """Rows to a split; rows with a label that `label_map` drops are left out.

    Raises:
        TaskError, ImageError: the first row that is wrong, or there are no rows.
    """
    split, template = Split([], []), task.template
    for place, row in rows:
        if isinstance(row, RowError):
            raise row
        asked = input_of(template, row, place)
        label: int | None = UNLABELLED
        if labelled and task.target is None:
            label = label_of(task, row, place)
        elif labelled:
            split.targets.append(targets_of(task, row, asked, place))
        if label is not None:
            split.rows.append(asked)
            split.labels.append(label)
    if not split.rows:
        raise TaskError(f"{name}: no rows")
    return split


def _sides(task: Task, train: Split, test: list[Split]) -> TaskData:
    """Both sides, none of them empty."""
    if not test:
        data = _split(task, train)
        for side, rows in (("training", data.train), ("test", data.test)):
            if not rows.rows:
                raise TaskError(
                    f"task {task.name!r}: no {side} rows are left after the split; give more rows "
                    "or change test_fraction"
                )
        return data
    data = without_leakage(train, test[0])
    if not data.train.rows:
        raise TaskError(
            f"task {task.name!r}: all {len(train.rows)} training rows are also test rows; give "
            "other rows as the test data"
        )
    return data


def without_leakage(train: Split, test: Split) -> TaskData:
    """Drop training rows that are also test rows: same text and same picture."""
    # The training side gives way: dropping test rows would change what is measured.
    held = {content_of(row) for row in test.rows}
    return TaskData(
        train.take(number for number, row in enumerate(train.rows) if content_of(row) not in held),
        test,
    )


def content_of(row: Input) -> tuple[str, ...]:
    """The content of a row without its place: text, picture, candidates."""
    if isinstance(row, str):
        return (row,)
    picture = () if row.image is None else (picture_digest(row.image, where=row.where),)
    return (
        row.text,
        *picture,
        *(part for one in row.candidates for part in ("candidate", *content_of(one))),
    )


def data_digest(split: Split) -> str:
    """SHA-256 over texts, pictures, candidates, labels and targets in order.

    Paths do not matter.
    """
    sha = hashlib.sha256()
    for number, (row, label) in enumerate(zip(split.rows, split.labels, strict=True)):
        sha.update(f"{label}".encode())
        if split.targets:
            sha.update("".join(f"\t{len(part)}\t{part}" for part in split.targets[number]).encode())
        # Each part with its length: without it, "ab" + "c" and "a" + "bc" would be one content.
        sha.update("".join(f"\t{len(part)}\t{part}" for part in content_of(row)).encode() + b"\n")
    return "sha256:" + sha.hexdigest()


def _by_class(split: Split, seed: int) -> dict[int, list[int]]:
    classes: dict[int, list[int]] = {}
    for row, label in enumerate(split.labels):
        classes.setdefault(label, []).append(row)
    shuffler = random.Random(seed)
    # Sorted: the draw must not depend on which label happens to come first in the file.
    for label in sorted(classes):
        shuffler.shuffle(classes[label])
    return classes


def few_shot(split: Split, *, shots: int, seed: int) -> Split:
    """`shots` rows of each class.

    Raises:
        TaskError: a class has fewer.
    """
    classes = _by_class(split, seed)
    for label, rows in classes.items():
        if len(rows) < shots:
            raise TaskError(
                f"shots {shots}: label number {label} has only {len(rows)} training rows; ask for "
                "at most that many"
            )
    return split.take(row for label in sorted(classes) for row in classes[label][:shots])


def few_shot_beside(split: Split, *, shots: int, held: int, seed: int) -> tuple[Split, Split]:
    """(Shots as of `few_shot`, at most `held` other rows); both draws follow the seed.

    A class with fewer than twice `shots` rows gives half of them as shots.
    """
    classes = _by_class(split, seed)
    few = {label: rows[: min(shots, len(rows) // 2)] for label, rows in classes.items()}
    rest = [row for label, rows in classes.items() for row in rows[len(few[label]) :]]
    drawn = random.Random(seed).sample(sorted(rest), min(held, len(rest)))
    return split.take(row for label in sorted(few) for row in few[label]), split.take(sorted(drawn))


def hold_out(split: Split, *, fraction: float, seed: int) -> tuple[Split, Split | None]:
    """Stratified (train, validation). Nothing is held out if a class has fewer than 20 rows."""
    classes = _by_class(split, seed)
    # With fewer, a tenth is one or two rows, and early stopping would follow noise.
    if min(len(rows) for rows in classes.values()) < 20:
        return split, None
    held = {row for rows in classes.values() for row in rows[: max(1, round(len(rows) * fraction))]}
    everything = range(len(split.rows))
    return split.take(row for row in everything if row not in held), split.take(sorted(held))


def limit(split: Split, rows: int | None, *, seed: int) -> Split:
    """At most `rows` rows, drawn by the seed."""
    if rows is None or rows >= len(split.rows):
        return split
    # Sorted back into the file's order, so that a larger limit only adds rows between.
    return split.take(sorted(random.Random(seed).sample(range(len(split.rows)), rows)))
