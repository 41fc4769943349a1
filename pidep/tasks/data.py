"""Rows to texts and label numbers; splits without leakage; shots."""

from __future__ import annotations

import csv
import hashlib
import json
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pidep.errors import TaskError
from pidep.tasks.sources import packaged_rows
from pidep.tasks.task import Task

__all__ = ["UNLABELLED", "Split", "TaskData", "data_digest", "few_shot", "hold_out", "limit", "load_data", "load_texts"]

UNLABELLED = -1
"""Stands where a label was not read, or is not there."""
Numbered = Iterable[tuple[int, Any]]
"""Rows with their numbers in the file, from 1."""


@dataclass(frozen=True)
class Split:
    """Texts and label numbers, side by side."""

    texts: list[str]
    labels: list[int]

    def take(self, rows: Iterable[int]) -> Split:
        """The rows of the given numbers."""
        chosen = list(rows)
        return Split([self.texts[row] for row in chosen], [self.labels[row] for row in chosen])


@dataclass(frozen=True)
class TaskData:
    """Training rows, and the test rows nothing but evaluation sees."""

    train: Split
    test: Split


def _jsonl(path: Path) -> Iterator[Any]:
    with path.open(encoding="utf-8") as stream:
        for number, line in enumerate(stream, 1):
            if line.strip():
                try:
                    yield json.loads(line)
                except ValueError as error:
                    raise TaskError(f"{path}:{number}: not a JSON object ({error})") from error


def _read_file(path: Path) -> Iterator[Any]:
    if not path.is_file():
        raise TaskError(f"{path}: no such data file")
    kind = path.suffix.lower()
    try:
        if kind == ".jsonl":
            yield from _jsonl(path)
        elif kind in (".csv", ".tsv"):
            with path.open(encoding="utf-8", newline="") as stream:
                yield from csv.DictReader(stream, delimiter="," if kind == ".csv" else "\t")
        elif kind == ".parquet":
            import pyarrow.parquet

            for batch in pyarrow.parquet.ParquetFile(path).iter_batches():
                yield from batch.to_pylist()
        else:
            raise TaskError(f"{path}: expected .jsonl, .csv, .tsv or .parquet, found {kind or 'no suffix'!r}")
    except ImportError as error:
        raise TaskError(f"{path}: Parquet needs a working pyarrow ({error}); pip install 'pidep[tune]'") from error
    except (OSError, UnicodeDecodeError, csv.Error, ValueError) as error:
        raise TaskError(f"{path}: not readable ({error})") from error


def _hub_rows(task: Task, split: str) -> Iterator[Any]:
    data = task.data
    try:
        import datasets
    except ImportError as error:
        raise TaskError(f"dataset {data.dataset!r}: the datasets package does not load ({error}); pip install 'pidep[tune]'") from error
    try:
        table = datasets.load_dataset(data.dataset, data.config, revision=data.revision, split=split)
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise TaskError(f"task {task.name!r}: dataset {data.dataset!r}, split {split!r} could not be loaded ({reason})") from error
    feature = table.features.get(task.label)
    names = getattr(feature, "names", None)
    for row in table:
        yield {**row, task.label: names[row[task.label]]} if names and isinstance(row.get(task.label), int) else row


def _text(task: Task, row: Any, place: str) -> str:
    """The text of a row."""
    if not isinstance(row, dict):
        raise TaskError(f"{place}: expected an object with columns, found {type(row).__name__}")
    for column in task.columns:
        _check_column(row, column, place)
    try:
        text = task.input.format(**row).strip()
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise TaskError(f"{place}: the input template {task.input!r} does not fit it ({error}); use plain {{column}}") from error
    if not text:
        raise TaskError(f"{place}: the text is empty; remove the row")
    return text


def _label(task: Task, row: dict[str, Any], place: str) -> int:
    """The label number of a row."""
    _check_column(row, task.label, place)
    label = str(row[task.label])
    if label not in task.labels:
        raise TaskError(f"{place}: label {label!r} is not in the task's set ({', '.join(task.labels)})")
    return list(task.labels).index(label)


def _check_column(row: dict[str, Any], column: str, place: str) -> None:
    if row.get(column) is None:
        raise TaskError(f"{place}: no column {column!r}; the row has {', '.join(map(str, row))}")


def _parse(task: Task, rows: Numbered, where: str, *, labelled: bool = True) -> Split:
    """Rows to a split; the first wrong row stops everything."""
    split = Split([], [])
    for number, row in rows:
        place = f"{where}, row {number}"
        split.texts.append(_text(task, row, place))
        split.labels.append(_label(task, row, place) if labelled else UNLABELLED)
    if not split.texts:
        raise TaskError(f"{where}: no rows")
    return split


def _share(text: str, seed: int) -> float:
    """A number in [0, 1) that depends on the text and the seed only."""
    return int.from_bytes(hashlib.sha256(f"{seed}\n{text}".encode()).digest()[:8], "big") / 2**64


def _is_test(task: Task, text: str) -> bool:
    """A text falls on one side by its own hash, so equal texts are never on both."""
    return _share(" ".join(text.lower().split()), task.split_seed) < task.test_fraction


def _split(task: Task, rows: Split) -> TaskData:
    sides = [_is_test(task, text) for text in rows.texts]
    return TaskData(
        train=rows.take(row for row, test in enumerate(sides) if not test), test=rows.take(row for row, test in enumerate(sides) if test)
    )


def load_data(task: Task) -> TaskData:
    """Training and test rows of a task.

    Raises:
        TaskError: a file, column, label or text is wrong; says where.
    """
    train, *test = [_parse(task, enumerate(rows, 1), where) for rows, where in _sources(task)]
    return _both(task, _without_leakage(train, test[0]) if test else _split(task, train))


def load_texts(task: Task) -> TaskData:
    """The same rows for a target without labels: those of training rows are not looked at, whether they are there or not.

    Test rows have their labels, for evaluation alone; where none of them has one, they are `UNLABELLED`, too.

    Raises:
        TaskError: a file, column or text is wrong, or the label of a test row where others have one; says where.
    """
    sides = [(list(enumerate(rows, 1)), where) for rows, where in _sources(task)]
    train, *test = [_parse(task, rows, where, labelled=False) for rows, where in sides]
    data = _both(task, _without_leakage(train, test[0]) if test else _split(task, train))
    rows, where = sides[-1]
    tested = rows if test else [found for found, text in zip(rows, train.texts, strict=True) if _is_test(task, text)]
    if all(row.get(task.label) is None for _, row in tested):
        return data
    return TaskData(data.train, _parse(task, tested, where))


def _sources(task: Task) -> list[tuple[Iterable[Any], str]]:
    """Rows and where they are from: the training rows, and the test rows where the data has some of its own."""
    data = task.data
    if data.dataset is not None:
        names = [data.train_split, *([data.test_split] if data.test_split is not None else [])]
        return [(_hub_rows(task, name), f"{data.dataset}[{name}]") for name in names]
    if data.files is not None:
        return [(_read_file(data.files["train"]), str(data.files["train"])), (_read_file(data.files["test"]), str(data.files["test"]))]
    path = packaged_rows(data.packaged) if data.packaged is not None else data.path
    assert path is not None
    return [(_read_file(path), str(path))]


def _without_leakage(train: Split, test: Split) -> TaskData:
    """Training rows whose text is also a test row are dropped."""
    held = set(test.texts)
    return TaskData(train.take(row for row, text in enumerate(train.texts) if text not in held), test)


def _both(task: Task, data: TaskData) -> TaskData:
    for side, split in (("training", data.train), ("test", data.test)):
        if not split.texts:
            raise TaskError(f"task {task.name!r}: no {side} rows are left after the split; give more rows or change test_fraction")
    return data


def data_digest(split: Split) -> str:
    """SHA-256 over texts and labels in order."""
    sha = hashlib.sha256()
    for text, label in zip(split.texts, split.labels, strict=True):
        sha.update(f"{label}\t{len(text)}\t{text}\n".encode())
    return "sha256:" + sha.hexdigest()


def _by_class(split: Split, seed: int) -> dict[int, list[int]]:
    classes: dict[int, list[int]] = {}
    for row, label in enumerate(split.labels):
        classes.setdefault(label, []).append(row)
    shuffler = random.Random(seed)
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
            raise TaskError(f"shots {shots}: label number {label} has only {len(rows)} training rows; ask for at most that many")
    return split.take(row for label in sorted(classes) for row in classes[label][:shots])


def hold_out(split: Split, *, fraction: float, seed: int) -> tuple[Split, Split | None]:
    """Stratified (train, validation); with fewer than 20 rows of a class nothing is held back."""
    classes = _by_class(split, seed)
    if min(len(rows) for rows in classes.values()) < 20:
        return split, None
    held = {row for rows in classes.values() for row in rows[: max(1, round(len(rows) * fraction))]}
    everything = range(len(split.texts))
    return split.take(row for row in everything if row not in held), split.take(sorted(held))


def limit(split: Split, rows: int | None, *, seed: int) -> Split:
    """At most `rows` rows, drawn by the seed."""
    if rows is None or rows >= len(split.texts):
        return split
    return split.take(sorted(random.Random(seed).sample(range(len(split.texts)), rows)))
