"""Images as data: a folder of folders, or a Parquet column of images. Nothing is decoded.

The forms are Hugging Face's ImageFolder and Image feature. No torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pidep.errors import TaskError, did_you_mean
from pidep.inputs.places import RowError
from pidep.tasks.tables import parquet_file, read_rows

__all__ = ["SUFFIXES", "image_folder", "parquet_images"]

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")
_METADATA = ("metadata.jsonl", "metadata.csv")


def image_folder(folder: Path) -> list[dict[str, Any]]:
    """Rows `{"image": path, "label": folder's name}`, sorted by path, as `imagefolder` reads them.

    Files directly in `folder` have no label. The columns of a `metadata.jsonl` or `metadata.csv`
    (captions, questions, …) join the row that its `file_name` names. A row without metadata is then
    an error. Hidden files are ignored.

    Raises:
        TaskError: no such folder, no images, a file that is no image, or metadata that does not
            fit; the message names it.
    """
    if not folder.is_dir():
        raise TaskError(
            f"{folder}: expected a folder of images, found "
            f"{'a file' if folder.exists() else 'nothing'}; check the path"
        )
    rows: dict[str, dict[str, Any]] = {}
    # Sorted: file systems list their files in different orders.
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if (
            path.is_dir()
            or any(part.startswith(".") for part in inside.parts)
            or inside.as_posix() in _METADATA
        ):
            continue
        if path.suffix.lower() not in SUFFIXES:
            raise TaskError(
                f"{path}: expected an image ({', '.join(SUFFIXES)}), found "
                f"{path.suffix or 'no suffix'!r}; move it elsewhere"
            )
        label = {"label": inside.parent.as_posix()} if len(inside.parts) > 1 else {}
        rows[inside.as_posix()] = {"image": path, **label}
    if not rows:
        raise TaskError(f"{folder}: no images in it; expected {folder}/LABEL/NAME.png")
    _join(folder, rows)
    return list(rows.values())


def _join(folder: Path, rows: dict[str, dict[str, Any]]) -> None:
    found = [folder / name for name in _METADATA if (folder / name).is_file()]
    if not found:
        return
    if len(found) > 1:
        raise TaskError(
            f"{folder}: expected one of {' and '.join(_METADATA)}, found both; remove one"
        )
    missing = set(rows)
    for place, columns in read_rows(found[0], wanted=("file_name",)):
        if isinstance(columns, RowError):
            raise columns
        name = columns.pop("file_name", None) if isinstance(columns, dict) else None
        if not isinstance(name, str) or name not in rows:
            raise TaskError(
                f"{place}: file_name {name!r}: expected the path of an image below {folder}"
            )
        if name not in missing:
            raise TaskError(f"{place}: file_name {name!r} is named twice; remove one of the rows")
        missing.discard(name)
        rows[name] |= columns
    if missing:
        raise TaskError(
            f"{found[0]}: {len(missing)} images have no row, {min(missing)!r} the first; add them "
            "or move them elsewhere"
        )


def parquet_images(path: Path, *, column: str = "image") -> Iterator[dict[str, Any]]:
    """Rows of a Parquet file with `column` as an image source, few at a time.

    The column is Hugging Face's struct `{bytes, path}`, bytes, or paths. A relative path is
    relative to the file.

    Raises:
        TaskError: the file cannot be read, has no such column, or another type of column.
    """
    if not path.is_file():
        raise TaskError(f"{path}: no such data file")
    with parquet_file(path) as file:
        import pyarrow

        schema = file.schema_arrow
        if column not in schema.names:
            near = did_you_mean(column, schema.names)
            raise TaskError(f"{path}: no column {column!r}; it has {', '.join(schema.names)}{near}")
        _check_type(path, column, schema.field(column).type, pyarrow.types)
        # Few rows at a time, because each holds whole image files.
        for batch in file.iter_batches(batch_size=32):
            for row in batch.to_pylist():
                yield {**row, column: _absolute(row[column], path.parent)}


def _check_type(path: Path, column: str, kind: Any, types: Any) -> None:
    parts = (
        {kind.field(index).name for index in range(kind.num_fields)}
        if types.is_struct(kind)
        else set()
    )
    flat = (types.is_binary, types.is_large_binary, types.is_string, types.is_large_string)
    if not (parts and parts <= {"bytes", "path"}) and not any(fits(kind) for fits in flat):
        raise TaskError(
            f"{path}: column {column!r} is {kind}; expected struct<bytes: binary, path: string>, "
            "binary or string"
        )


def _absolute(value: Any, folder: Path) -> Any:
    """Bytes as they are, or a path made absolute by the data file's folder."""
    if isinstance(value, str):
        return folder / value
    if isinstance(value, dict) and value.get("bytes") is None and value.get("path") is not None:
        return {"bytes": None, "path": str(folder / value["path"])}
    return {"bytes": None, "path": None} if value is None else value
