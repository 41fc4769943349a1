"""Rows and class names from `datasets`: from a hub, or from a folder in the same form."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pidep.errors import TaskError, did_you_mean
from pidep.files.atomic_write import write_bytes
from pidep.files.cache_folder import cache_folder
from pidep.inputs.template import fill
from pidep.tasks.task import Task, require_different_texts

__all__ = ["hub_rows", "images_folder", "with_labels"]


def hub_rows(task: Task, split: str, *, dataset: str) -> Iterator[Any]:
    """Rows of a split with labels by name (None where there is none) and images as files.

    Images that come as bytes are kept in the cache folder by their SHA-256, because a dataset of
    images is larger than memory.

    Raises:
        TaskError: `datasets` is not installed, or the split cannot be loaded.
    """
    table = _table(task, split, dataset)
    names = getattr(table.features.get(task.label), "names", None)
    for column, feature in table.features.items():
        if type(feature).__name__ == "Image":
            import datasets

            # Without decoding: pixels are many times larger than files, and `pidep.inputs` decodes
            # them.
            table = table.cast_column(column, datasets.Image(decode=False))
    folder = images_folder(task)
    for row in table:
        if names is not None and isinstance(row.get(task.label), int):
            # unlabelled splits have -1
            row[task.label] = names[row[task.label]] if 0 <= row[task.label] < len(names) else None
        if task.image is not None and row.get(task.image) is not None:
            row[task.image] = _on_disk(row[task.image], folder)
        yield row


def images_folder(task: Task) -> Path:
    """The folder of relative image paths.

    It is `data.images`, `$PIDEP_IMAGES`, or `images` in the cache.
    """
    return task.data.images or Path(os.environ.get("PIDEP_IMAGES") or cache_folder() / "images")


def with_labels(task: Task) -> Task:
    """The task with its labels. With `label_text`, they are made from the data's class names.

    Raises:
        TaskError: the data cannot be loaded, or the label's column has no class names.
    """
    if task.label_text is None:
        return task
    if task.data.dataset is None:
        raise TaskError(
            f"task {task.name!r}: label_text takes class names from a dataset, and there is none; "
            "write them under labels"
        )
    feature = _table(task, task.data.train_split, task.data.dataset).features.get(task.label)
    names = getattr(feature, "names", None)
    if not names or len(names) < 2:
        found = "no such column" if feature is None else f"{type(feature).__name__}"
        raise TaskError(
            f"task {task.name!r}: label_text: expected class names in column {task.label!r} of "
            f"{task.data.dataset}, found {found}; "
            "write the labels under labels"
        )
    for name in task.label_names:
        if name not in names:
            raise TaskError(
                f"task {task.name!r}: label_names: {name!r} is no class of "
                f"{task.data.dataset}{did_you_mean(name, names)}"
            )
    texts = {
        name: fill(task.label_text, {"label": task.label_names.get(name, _in_words(name))})
        for name in names
    }
    try:
        require_different_texts(texts)
    except ValueError as error:
        raise TaskError(f"task {task.name!r}: label_text: {error}") from error
    return task.model_copy(update={"labels": texts, "label_text": None, "label_names": {}})


def _in_words(name: str) -> str:
    return " ".join(name.replace("_", " ").split())


def _table(task: Task, split: str, dataset: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise TaskError(
            f"dataset {dataset!r}: the datasets package does not load ({error}); pip install "
            "'pidep[tune]'"
        ) from error
    try:
        return datasets.load_dataset(
            dataset, task.data.config, revision=task.data.revision, split=split
        )
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise TaskError(
            f"task {task.name!r}: dataset {dataset!r}, split {split!r} could not be loaded "
            f"({reason})"
        ) from error


def _on_disk(image: Any, folder: Path) -> Any:
    """The path of a row's image; an unknown form is returned as it is."""
    if isinstance(image, dict):
        image = image.get("bytes") or image.get("path") or image
    if isinstance(image, bytes):
        return _kept(image)
    return folder / image if isinstance(image, str) else image


def _kept(data: bytes) -> Path:
    digest = hashlib.sha256(data).hexdigest()
    # Two letters as a folder: a folder of a million files is slow to list.
    path = cache_folder() / "hub-images" / digest[:2] / digest
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, data)
    return path
