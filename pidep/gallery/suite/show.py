"""Shows a packaged task, or writes it as files."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from pidep.errors import TaskError, UsageError, did_you_mean
from pidep.files.atomic_write import atomic_folder, check_place
from pidep.gallery.icons.catalog import Icon
from pidep.gallery.suite.facts import FACTS, Facts
from pidep.gallery.suite.files import sides_of
from pidep.gallery.suite.pictures import Picture, Turned, picture_file
from pidep.gallery.suite.row import SuiteRow, columns

__all__ = ["examples", "export_task", "facts_of"]


def facts_of(name: str) -> Facts:
    """The facts of a packaged task.

    Raises:
        TaskError: no task has this name.
    """
    if name not in FACTS:
        raise TaskError(
            f"task {name!r}: expected one of {', '.join(FACTS)}{did_you_mean(name, FACTS)}"
        )
    return FACTS[name]


def examples(name: str, *, count: int = 3) -> list[dict[str, Any]]:
    """The first training rows of every label, with pictures as absolute paths.

    A task whose rows bring candidates gives its first rows.

    Raises:
        TaskError: no such task, or a package it is drawn from is not installed.
    """
    facts_of(name)
    rows = sides_of(name).train
    labels = FACTS[name].fields.get("labels")
    chosen = rows[:count] if labels is None else _of_each(rows, labels, count)
    return [
        columns(row, path_of=lambda picture: str(picture_file(picture).absolute()))
        for row in chosen
    ]


def _of_each(rows: list[SuiteRow], labels: Iterable[str], count: int) -> Iterator[SuiteRow]:
    for label in labels:
        yield from itertools.islice((row for row in rows if row.label == label), count)


def export_task(name: str, folder: Path) -> Path:
    """Write `NAME.yaml`, `train.jsonl`, `test.jsonl` and `images/` to a new folder; gives the YAML.

    Raises:
        TaskError: no such task, or a package it is drawn from is not installed.
        UsageError: the folder is a file, or is not empty.
    """
    facts = facts_of(name)
    check_place(folder, "`export`")
    if folder.exists() and any(folder.iterdir()):
        raise UsageError(
            f"`export` {folder}: expected a new or empty folder, found "
            f"{next(folder.iterdir()).name!r} in it; name another"
        )
    sides, yaml_name = sides_of(name), f"{facts.fields['name']}.yaml"
    with atomic_folder(folder) as made:
        for path, rows in ((made / "train.jsonl", sides.train), (made / "test.jsonl", sides.test)):
            lines = [
                json.dumps(
                    columns(row, path_of=lambda picture: _copied(picture, made)), ensure_ascii=False
                )
                for row in rows
            ]
            path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        fields = {
            **facts.fields,
            "metric": facts.metric,
            "data": {"files": {"train": "train.jsonl", "test": "test.jsonl"}},
        }
        size = f"{facts.train} training and {facts.test} test rows"
        head = f"# {name}: {facts.asks} {size}.\n# {facts.licence}\n"
        (made / yaml_name).write_text(
            head + yaml.safe_dump(fields, sort_keys=False, allow_unicode=True), encoding="utf-8"
        )
    return folder / yaml_name


def _copied(picture: Picture, folder: Path) -> str:
    path = folder / "images" / f"{_called(picture)}.png"
    if not path.is_file():
        path.parent.mkdir(exist_ok=True)
        shutil.copyfile(picture_file(picture), path)
    return path.relative_to(folder).as_posix()


def _called(picture: Picture) -> str:
    """A file name that says what the picture shows, one for each picture."""
    if isinstance(picture, Icon):
        return picture.key.replace("/", "-")
    if isinstance(picture, Turned):
        return f"{_called(picture.icon)}-turned-{90 * picture.quarters}"
    return f"digit-{picture.number:04d}"
