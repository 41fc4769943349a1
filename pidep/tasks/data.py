"""Rows to inputs and label numbers; splits without leakage; few shots."""

from __future__ import annotations

import csv
import hashlib
import json
import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from pidep.errors import TaskError, did_you_mean
from pidep.inputs.images import ImageSource, check_source
from pidep.inputs.row import Input, Row, picture_digest, text_of
from pidep.tasks.answers import check_column, label_of, targets_of
from pidep.tasks.by_hash import held_out
from pidep.tasks.hub import hub_rows, with_labels
from pidep.tasks.images import image_folder, parquet_images
from pidep.tasks.packaged import packaged_task, packaged_tasks
from pidep.tasks.task import Task

__all__ = [
    "UNLABELLED",
    "Split",
    "TaskData",
    "data_digest",
    "few_shot",
    "hold_out",
    "limit",
    "load_data",
    "load_texts",
]

UNLABELLED = -1
"""The label number of a row whose label was not read or does not exist."""
Numbered = Iterable[tuple[int, Any]]
"""Rows with their numbers in the file, from 1."""


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
            # newline="": the csv module itself handles line breaks inside quotation marks.
            with path.open(encoding="utf-8", newline="") as stream:
                yield from csv.DictReader(stream, delimiter="," if kind == ".csv" else "\t")
        elif kind == ".parquet":
            import pyarrow.parquet

            # In batches: a file of images may be larger than memory.
            for batch in pyarrow.parquet.ParquetFile(path).iter_batches():
                yield from batch.to_pylist()
        else:
            raise TaskError(
                f"{path}: expected .jsonl, .csv, .tsv or .parquet, found {kind or 'no suffix'!r}"
            )
    except ImportError as error:
        raise TaskError(
            f"{path}: Parquet needs a working pyarrow ({error}); pip install 'pidep[tune]'"
        ) from error
    except (OSError, UnicodeDecodeError, csv.Error, ValueError) as error:
        raise TaskError(f"{path}: not readable ({error})") from error


def _input(task: Task, row: Any, place: str) -> Input:
    """A row's input: text, image and candidates."""
    text = _text(task, row, place)
    if task.image is None and task.candidates is None:
        return text
    image = None if task.image is None else _image(row, task.image, place)
    return Row(text, image, () if task.candidates is None else _candidates(task, row, place), place)


def _image(row: dict[str, Any], column: str, place: str) -> ImageSource:
    check_column(row, column, place)
    image = row[column]
    if not isinstance(image, str | Path | bytes | dict | Image.Image):
        raise TaskError(
            f"{place}: column {column!r}: expected a path, bytes or {{bytes, path}}, found "
            f"{type(image).__name__}"
        )
    check_source(image, where=f"{place}: {column}")
    return image


def _candidates(task: Task, row: dict[str, Any], place: str) -> tuple[Input, ...]:
    assert task.candidates is not None
    check_column(row, task.candidates, place)
    values = row[task.candidates]
    if not isinstance(values, list) or len(values) < 2:
        raise TaskError(
            f"{place}: column {task.candidates!r}: expected a list of at least 2 candidates, found "
            f"{str(values)[:60]!r}"
        )
    if task.candidates_are == "image":
        numbered = [(f"{place}, candidate {number}", value) for number, value in enumerate(values)]
        return tuple(
            Row(image=_image({"image": value}, "image", where), where=where)
            for where, value in numbered
        )
    for number, value in enumerate(values):
        if not isinstance(value, str) or not value.strip():
            raise TaskError(
                f"{place}: candidate {number}: expected a text, found {str(value)[:60]!r}"
            )
    return tuple(value.strip() for value in values)


def _text(task: Task, row: Any, place: str) -> str:
    """The text of a row; empty only where there is an image."""
    if not isinstance(row, dict):
        raise TaskError(f"{place}: expected an object with columns, found {type(row).__name__}")
    for column in task.columns:
        check_column(row, column, place)
    try:
        text = task.input.format(**row).strip()
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise TaskError(
            f"{place}: the input template {task.input!r} does not fit it ({error}); use plain "
            f"{{column}}"
        ) from error
    if not text and task.image is None:
        raise TaskError(f"{place}: the text is empty; remove the row")
    return text


def _each(task: Task, rows: Iterable[Any], where: str) -> Iterator[Any]:
    """Rows, expanded where `data.each` names a column of lists."""
    column = task.data.each
    for number, row in enumerate(rows, 1):
        if column is None or not isinstance(row, dict):
            yield row
            continue
        if not isinstance(row.get(column), list):
            raise TaskError(
                f"{where}, row {number}: column {column!r}: expected a list, found "
                f"{str(row.get(column))[:60]!r}"
            )
        for value in row[column]:
            yield {**row, column: value}


def _parse(task: Task, rows: Numbered, where: str, *, labelled: bool = True) -> Split:
    """Rows to a split. The first wrong row stops the reading."""
    split = Split([], [])
    for number, row in rows:
        place = f"{where}, row {number}"
        split.rows.append(_input(task, row, place))
        split.labels.append(
            label_of(task, row, place) if labelled and task.target is None else UNLABELLED
        )
        if labelled and task.target is not None:
            split.targets.append(targets_of(task, row, split.rows[-1], place))
    if not split.rows:
        raise TaskError(f"{where}: no rows")
    return split


def _is_test(task: Task, row: Input) -> bool:
    """Whether a row is a test row. Its own hash decides, so equal rows are on one side."""
    return held_out(_asked(row), fraction=task.test_fraction, seed=task.split_seed)


def _asked(row: Input) -> str:
    """The text that decides a row's side: the picture's digest where there is one."""
    if isinstance(row, Row) and row.image is not None:
        return picture_digest(row.image, where=row.where)
    return text_of(row)


def _split(task: Task, rows: Split) -> TaskData:
    sides = [_is_test(task, row) for row in rows.rows]
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
    train, *test = [_parse(task, enumerate(rows, 1), where) for rows, where in _sources(task)]
    return _both(task, _without_leakage(train, test[0]) if test else _split(task, train))


def load_texts(task: Task) -> TaskData:
    """The same rows for a target without labels. Labels of training rows are not read.

    Test rows keep their labels for evaluation. If none has one, all are `UNLABELLED`.

    Raises:
        TaskError, ImageError: a file, column, text or image is wrong, or a test row lacks a label
            where others have one; says where.
    """
    task = with_labels(task)
    sides = [(list(enumerate(rows, 1)), where) for rows, where in _sources(task)]
    train, *test = [_parse(task, rows, where, labelled=False) for rows, where in sides]
    data = _both(task, _without_leakage(train, test[0]) if test else _split(task, train))
    rows, where = sides[-1]
    tested = (
        rows
        if test
        else [found for found, row in zip(rows, train.rows, strict=True) if _is_test(task, row)]
    )
    answers = [task.label] if task.target is None else task.target_columns
    if all(row.get(column) is None for _, row in tested for column in answers):
        return data
    return TaskData(data.train, _parse(task, tested, where))


def _sources(task: Task) -> list[tuple[Iterable[Any], str]]:
    """Rows with their source: training rows, and test rows where the data has separate ones."""
    return [(_each(task, rows, where), where) for rows, where in _whole_sources(task)]


def _whole_sources(task: Task) -> list[tuple[Iterable[Any], str]]:
    data = task.data
    if data.rows is not None:
        sides = [(data.rows.train, "training rows"), (data.rows.test, "test rows")]
        return [(rows, where) for rows, where in sides if rows is not None]
    if data.dataset is not None:
        splits = [(data.dataset, data.train_split)]
        if data.test_split is not None:
            splits.append((data.test_dataset or data.dataset, data.test_split))
        return [
            (hub_rows(task, split, dataset=dataset), f"{dataset}[{split}]")
            for dataset, split in splits
        ]
    found = _packaged(data.packaged) if data.packaged is not None else data.files or data.path
    assert found is not None
    paths = [found] if isinstance(found, Path) else [found["train"], found["test"]]
    return [(_rows_of(task, path), str(path)) for path in paths]


def _packaged(name: str) -> Mapping[Any, Path] | Path:
    found = packaged_task(name)
    if found is None:
        known = packaged_tasks()
        raise TaskError(
            f"packaged source {name!r}: expected one of "
            f"{', '.join(known)}{did_you_mean(name, known)}"
        )
    return found.files()


def _rows_of(task: Task, path: Path) -> Iterator[Any]:
    """Rows of a file or of a folder of images. Relative image paths are relative to the file."""
    if task.image is not None and path.is_dir():
        for row in image_folder(path):
            yield {**row, task.image: row["image"]}
    elif task.image is not None and path.suffix.lower() == ".parquet":
        yield from parquet_images(path, column=task.image)
    elif task.image is None and task.candidates_are == "text":
        yield from _read_file(path)
    else:
        for row in _read_file(path):
            yield _beside(task, row, path.parent)


def _beside(task: Task, row: Any, folder: Path) -> Any:
    """The row with absolute image paths."""
    if not isinstance(row, dict):
        return row
    found = dict(row)
    if task.image is not None and isinstance(row.get(task.image), str):
        found[task.image] = folder / row[task.image]
    if (
        task.candidates_are == "image"
        and task.candidates is not None
        and isinstance(row.get(task.candidates), list)
    ):
        found[task.candidates] = [
            folder / value if isinstance(value, str) else value for value in row[task.candidates]
        ]
    return found


def _without_leakage(train: Split, test: Split) -> TaskData:
    """Drop training rows that are also test rows: same text and same picture."""
    # The training side gives way: dropping test rows would change what is measured.
    held = {_content(row) for row in test.rows}
    return TaskData(
        train.take(number for number, row in enumerate(train.rows) if _content(row) not in held),
        test,
    )


def _content(row: Input) -> tuple[str, ...]:
    """The content of a row without its place: text, picture, candidates."""
    if isinstance(row, str):
        return (row,)
    picture = () if row.image is None else (picture_digest(row.image, where=row.where),)
    return (
        row.text,
        *picture,
        *(part for one in row.candidates for part in ("candidate", *_content(one))),
    )


def _both(task: Task, data: TaskData) -> TaskData:
    for side, split in (("training", data.train), ("test", data.test)):
        if not split.rows:
            raise TaskError(
                f"task {task.name!r}: no {side} rows are left after the split; give more rows or "
                "change test_fraction"
            )
    return data


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
        sha.update("".join(f"\t{len(part)}\t{part}" for part in _content(row)).encode() + b"\n")
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
