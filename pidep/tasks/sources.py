"""Where the rows of a task come from: files, folders, a dataset, a package, or memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from pidep.errors import TaskError, did_you_mean
from pidep.inputs.places import Place, Placed, RowError
from pidep.tasks.hub import hub_rows
from pidep.tasks.images import image_folder, parquet_images
from pidep.tasks.packaged import Side, packaged_task, packaged_tasks
from pidep.tasks.tables import data_files, file_kind, read_rows
from pidep.tasks.task import Task

__all__ = ["Source", "sources_of", "used_columns"]


@dataclass(frozen=True)
class Source:
    """One side's rows. They are read once, as they are asked for."""

    side: Side
    """Rows of a single source are all `train`; some of them become the test rows later."""
    name: str
    rows: Placed


def sources_of(task: Task) -> list[Source]:
    """Training rows, and test rows where the data has separate ones.

    Raises:
        TaskError: a file is missing, or training and test rows are the same file.
    """
    sides: tuple[Side, ...] = ("train", "test")
    return [
        Source(side, name, _each(task, rows))
        for side, (name, rows) in zip(sides, _whole_sources(task), strict=False)
    ]


def used_columns(task: Task) -> set[str]:
    """The columns that the task reads."""
    single = (task.image, task.candidates)
    answers = [task.label] if task.target is None else task.target_columns
    return {*task.columns, *answers, *(column for column in single if column is not None)}


def _each(task: Task, rows: Placed) -> Placed:
    """Rows, expanded where `data.each` names a column of lists."""
    column = task.data.each
    for place, row in rows:
        if column is None or not isinstance(row, dict):
            yield place, row
        elif isinstance(row.get(column), list):
            yield from ((place, {**row, column: value}) for value in row[column])
        else:
            found = str(row.get(column))[:60]
            yield place, RowError(place, f"column {column!r}: expected a list, found {found!r}")


def _whole_sources(task: Task) -> list[tuple[str, Placed]]:
    data = task.data
    if data.rows is not None:
        sides = [("training rows", data.rows.train), ("test rows", data.rows.test)]
        return [(name, _numbered(rows, name)) for name, rows in sides if rows is not None]
    if data.dataset is not None:
        splits = [(data.dataset, data.train_split)]
        if data.test_split is not None:
            splits.append((data.test_dataset or data.dataset, data.test_split))
        return [
            (name := f"{dataset}[{split}]", _numbered(hub_rows(task, split, dataset=dataset), name))
            for dataset, split in splits
        ]
    found = _packaged(data.packaged) if data.packaged is not None else data.files or data.path
    assert found is not None
    paths = [found] if isinstance(found, Path) else [found["train"], found["test"]]
    sets = [_files_of(task, path) for path in paths]
    _require_different(paths, sets)
    return [
        (str(path), _rows_of_files(task, files, path))
        for path, files in zip(paths, sets, strict=True)
    ]


def _packaged(name: str) -> Mapping[Any, Path] | Path:
    found = packaged_task(name)
    if found is None:
        known = packaged_tasks()
        raise TaskError(
            f"packaged source {name!r}: expected one of "
            f"{', '.join(known)}{did_you_mean(name, known)}"
        )
    return found.files()


def _numbered(rows: Iterable[Any], name: str) -> Placed:
    return ((Place(name, number), row) for number, row in enumerate(rows, 1))


def _files_of(task: Task, path: Path) -> list[Path]:
    """The data files of a path; a folder of images stays one source."""
    if task.image is not None and path.is_dir() and not any(path.rglob("*.parquet")):
        return [path]
    return data_files(path)


def _require_different(paths: list[Path], sets: list[list[Path]]) -> None:
    """Refuse one file as both sides: none of its rows would be left for training."""
    # Resolved: a link and its file are one file under two names.
    shared = set.intersection(*({file.resolve() for file in files} for files in sets))
    if len(sets) > 1 and shared:
        raise TaskError(
            f"{min(shared)}: holds the training rows and the test rows; name another test file, or "
            "give the one file as `path`, from which test rows are split off"
        )


def _rows_of_files(task: Task, files: list[Path], root: Path) -> Placed:
    for path in files:
        columns = _partition(path, root)
        for place, row in _rows_of(task, path):
            yield place, {**columns, **row} if columns and isinstance(row, dict) else row


def _partition(path: Path, root: Path) -> dict[str, str | None]:
    """The columns that folders below `root` name: `label=pos/part-0.parquet`.

    pandas and Spark write partitioned data like this, and leave these columns out of the files.
    """
    if not path.is_relative_to(root):
        return {}
    named = (part.partition("=") for part in path.relative_to(root).parts[:-1] if "=" in part)
    return {
        unquote(name): None if value == "__HIVE_DEFAULT_PARTITION__" else unquote(value)
        for name, _, value in named
    }


def _rows_of(task: Task, path: Path) -> Placed:
    """Rows of a file or of a folder of images. Relative image paths are relative to the file."""
    if task.image is not None and path.is_dir():
        folder_rows = ({**row, task.image: row["image"]} for row in image_folder(path))
        yield from _numbered(folder_rows, str(path))
    elif task.image is not None and file_kind(path) == ".parquet":
        yield from _numbered(parquet_images(path, column=task.image), str(path))
    else:
        for place, row in read_rows(path, task.data.text_format, used_columns(task)):
            yield place, _beside(task, row, path.parent)


def _beside(task: Task, row: Any, folder: Path) -> Any:
    """The row with absolute image paths."""
    images = task.candidates_are == "image"
    if not isinstance(row, dict) or (task.image is None and not images):
        return row
    found = dict(row)
    if task.image is not None and isinstance(row.get(task.image), str):
        found[task.image] = folder / row[task.image]
    if images and task.candidates is not None and isinstance(row.get(task.candidates), list):
        found[task.candidates] = [
            folder / value if isinstance(value, str) else value for value in row[task.candidates]
        ]
    return found
