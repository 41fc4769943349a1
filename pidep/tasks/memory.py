"""Rows in memory as a task's data, and a task written as files. No torch."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from PIL import Image

from pidep.errors import TaskError
from pidep.files.atomic_write import write_bytes, write_text
from pidep.inputs.cells import is_missing
from pidep.tasks.delimited import unique_columns
from pidep.tasks.values import name_of

if TYPE_CHECKING:
    from pidep.tasks.task import Task

__all__ = ["MemoryRows", "label_names", "labels_in", "plain_rows", "write_task"]

Record = dict[str, Any]
"""A row: column to value."""


@dataclass(frozen=True, eq=False)
class MemoryRows:
    """Rows that are in memory, in the place of files."""

    train: tuple[Record, ...]
    test: tuple[Record, ...] | None = None
    """None: some of the training rows become the test rows, as in a single file."""


def plain_rows(rows: Any, *, label: str | None = None) -> tuple[Record, ...]:
    """The rows of a list of dicts, a pandas.DataFrame or a datasets.Dataset, as dicts.

    Class numbers of a `datasets.ClassLabel` become class names, and missing values become None.

    Raises:
        TaskError: the rows are of another form.
    """
    names = label_names(rows, label)
    found = []
    for number, row in enumerate(_records(rows), 1):
        if not isinstance(row, Mapping):
            raise TaskError(
                f"row {number}: expected a dict of columns, found {type(row).__name__}; "
                "give a list of dicts, a pandas.DataFrame or a datasets.Dataset"
            )
        plain = {str(column): _plain(value) for column, value in row.items()}
        if names and label is not None and isinstance(plain.get(label), int):
            # Splits without labels have -1 in this column.
            plain[label] = names[plain[label]] if 0 <= plain[label] < len(names) else None
        found.append(plain)
    return tuple(found)


def label_names(rows: Any, label: str | None) -> tuple[str, ...]:
    """Class names of the label's column in a datasets.Dataset; empty for other rows."""
    features = getattr(rows, "features", None)
    return tuple(getattr(features.get(label), "names", ())) if isinstance(features, dict) else ()


def labels_in(rows: Iterable[Record], label: str) -> tuple[str, ...]:
    """The labels of the rows, in the order in which they first appear."""
    found = (row.get(label) for row in rows)
    return tuple(dict.fromkeys(name_of(value) for value in found if not is_missing(value)))


def _records(rows: Any) -> Any:
    # Recognised by their methods, so that neither pandas nor datasets has to be installed.
    if hasattr(rows, "to_dict") and hasattr(rows, "columns"):
        # pandas keeps the last of two columns of one name.
        unique_columns(map(str, rows.columns), "rows")
        return rows.to_dict(orient="records")
    if hasattr(rows, "cast_column") and hasattr(rows, "features"):
        return _without_decoding(rows)
    if isinstance(rows, Iterable) and not isinstance(rows, str | bytes | Mapping):
        return rows
    raise TaskError(
        f"rows: expected a list of dicts, a pandas.DataFrame or a datasets.Dataset, "
        f"found {type(rows).__name__}"
    )


def _without_decoding(table: Any) -> Any:
    """A datasets.Dataset whose images stay as their files' bytes; decoding needs its extras."""
    for column, feature in table.features.items():
        if type(feature).__name__ == "Image":
            table = table.cast_column(column, type(feature)(decode=False))
    return table


def _plain(value: Any) -> Any:
    """Numbers of numpy as Python's, and pandas' signs of a missing value as None."""
    if isinstance(value, np.generic):
        value = value.item()
    # NaT and NA are recognised by name, so that pandas does not have to be installed.
    if is_missing(value) or type(value).__name__ in ("NaTType", "NAType"):
        return None
    if isinstance(value, np.ndarray) and value.dtype != np.uint8:
        return [_plain(one) for one in value.tolist()]
    return value


def write_task(task: Task, folder: Path) -> Path:
    """Write a task as `task.yaml`, and rows in memory beside it as JSONL and images.

    Returns:
        The task file. `load_task` reads the same task from it.

    Raises:
        TaskError: a value that JSON cannot hold, or an image that cannot be written.
    """
    fields = task.model_dump(mode="json", exclude_defaults=True, exclude={"data"})
    rows = task.data.rows
    if rows is None:
        fields["data"] = task.data.model_dump(mode="json", exclude_defaults=True)
    elif rows.test is None:
        fields["data"] = {"path": _write_rows(task, rows.train, folder, "rows.jsonl")}
    else:
        train = _write_rows(task, rows.train, folder, "train.jsonl")
        test = _write_rows(task, rows.test, folder, "test.jsonl")
        fields["data"] = {"files": {"train": train, "test": test}}
    path = folder / "task.yaml"
    write_text(path, yaml.safe_dump(fields, sort_keys=False, allow_unicode=True))
    return path


def _write_rows(task: Task, rows: Iterable[Record], folder: Path, name: str) -> str:
    lines = []
    for number, row in enumerate(rows, 1):
        keep = _image_keeper(folder, f"{name}, row {number}")
        record = dict(row)
        if task.image is not None and record.get(task.image) is not None:
            record[task.image] = keep(record[task.image])
        if task.candidates is not None and task.candidates_are == "image":
            record[task.candidates] = [keep(image) for image in record.get(task.candidates) or ()]
        try:
            lines.append(json.dumps(record, ensure_ascii=False))
        except TypeError as error:
            raise TaskError(
                f"row {number}: {error}; keep texts, numbers and lists of them in the columns"
            ) from error
    write_text(folder / name, "".join(f"{line}\n" for line in lines))
    return name


def _image_keeper(folder: Path, where: str) -> Callable[[Any], str]:
    """A function that gives the path of an image for the JSONL, and writes the image if need be."""

    def keep(image: Any) -> str:
        if isinstance(image, Mapping):
            image = image.get("bytes") or image.get("path")
        if isinstance(image, str | Path):
            return str(Path(image).absolute())
        if isinstance(image, np.ndarray):
            image = Image.fromarray(image)
        if isinstance(image, Image.Image):
            stream = io.BytesIO()
            image.save(stream, "PNG")
            image = stream.getvalue()
        if not isinstance(image, bytes):
            raise TaskError(f"{where}: expected an image, found {type(image).__name__}")
        # The decoder looks at the bytes, not at the suffix.
        path = Path("images") / f"{hashlib.sha256(image).hexdigest()[:32]}.png"
        if not (folder / path).is_file():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            write_bytes(folder / path, image)
        return str(path)

    return keep
