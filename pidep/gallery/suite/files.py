"""Rows of the packaged tasks as JSONL in the user's cache folder, written on first use."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from pidep.errors import TaskError, did_you_mean
from pidep.files.atomic_write import write_text
from pidep.files.cache_folder import cache_folder, locked
from pidep.gallery.suite import language, vision, vision_language
from pidep.gallery.suite.pictures import Picture, picture_file
from pidep.gallery.suite.row import Sides, SuiteRow, columns

__all__ = ["CHOOSE", "packaged_files", "sides_of"]

_CHOOSING = (
    *(
        "tasks/by_hash",
        "gallery/icons/catalog",
        "gallery/icons/digits",
        "gallery/icons/names",
        "gallery/icons/split",
    ),
    *(
        f"gallery/suite/{module}"
        for module in (
            "files",
            "icons",
            "language",
            "pictures",
            "row",
            "statements",
            "vision",
            "vision_language",
        )
    ),
)
"""Modules that decide the rows. A change of one of them makes cached rows stale."""
_PACKAGES = ("mkdocs-material", "fontawesomefree", "resvg-py", "scikit-learn", "pillow")
CHOOSE: dict[str, Callable[[], Sides]] = {
    **{f"sentiment/{name}": partial(language.sentiment, name) for name in language.DOMAINS},
    "vision/digits": vision.digits,
    "vision/family": vision.family,
    "vision/filled": vision.filled,
    "vision/category": vision.category,
    "vision/turned": vision.turned,
    "language/domain": language.domain,
    "language/strength": language.strength,
    "vl/fits": vision_language.fits,
    "vl/caption": vision_language.caption,
    "vl/badge": vision_language.badge,
    "vl/entail": vision_language.entail,
    "vl/find": vision_language.find,
}


def sides_of(name: str) -> Sides:
    """The rows of a task in a fixed order; only the packages decide them.

    Raises:
        TaskError: no such task, or a package it is drawn from is not installed.
    """
    if name not in CHOOSE:
        raise TaskError(
            f"packaged task {name!r}: expected one of "
            f"{', '.join(CHOOSE)}{did_you_mean(name, CHOOSE)}"
        )
    return CHOOSE[name]()


def packaged_files(name: str) -> dict[Literal["train", "test"], Path]:
    """The task's training and test rows as JSONL files, with pictures as relative paths.

    Raises:
        TaskError: no such task, or a package it is drawn from is not installed.
    """
    if name not in CHOOSE:
        sides_of(name)
    folder = cache_folder() / "suite" / _made_with() / name
    paths: dict[Literal["train", "test"], Path] = {
        "train": folder / "train.jsonl",
        "test": folder / "test.jsonl",
    }
    if not all(map(_is_whole, paths.values())):
        with locked(folder):
            if not all(map(_is_whole, paths.values())):
                sides = sides_of(name)
                for path, rows in ((paths["train"], sides.train), (paths["test"], sides.test)):
                    _write(path, rows)
    return paths


def _made_with() -> str:
    """Cache key: versions of the packages and a digest of the choosing modules."""
    sha = hashlib.sha256()
    for module in _CHOOSING:
        sha.update((Path(__file__).parents[2] / f"{module}.py").read_bytes())
    found = [sha.hexdigest()[:12]]
    for package in _PACKAGES:
        try:
            found.append(version(package))
        except PackageNotFoundError:
            found.append("none")
    return "-".join(found)


def _write(path: Path, rows: list[SuiteRow]) -> None:
    def path_of(picture: Picture) -> str:
        return Path(os.path.relpath(picture_file(picture), path.parent)).as_posix()

    write_text(
        path,
        "".join(
            json.dumps(columns(row, path_of=path_of), ensure_ascii=False) + "\n" for row in rows
        ),
    )


def _is_whole(path: Path) -> bool:
    """Whether the file and all of its pictures exist. A cache may have been emptied in part."""
    if not path.is_file():
        return False
    with path.open(encoding="utf-8") as stream:
        rows = [json.loads(line) for line in stream]
    return all((path.parent / picture).is_file() for row in rows for picture in _pictures(row))


def _pictures(row: dict[str, object]) -> list[str]:
    choices = row.get("choices")
    named = [row.get("image"), *(choices if isinstance(choices, list) else [])]
    return [value for value in named if isinstance(value, str) and value.endswith(".png")]
