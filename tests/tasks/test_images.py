"""Images from ImageFolder folders and Parquet columns."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pidep.errors import TaskError
from pidep.inputs.images import Preprocess, load_image
from pidep.tasks.images import image_folder, parquet_images


def png(shade: int) -> bytes:
    out = io.BytesIO()
    Image.new("L", (3, 2), shade).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    for label, name, shade in (("dog", "b.png", 10), ("cat", "a.PNG", 20), ("cat", "c.png", 30)):
        (tmp_path / label).mkdir(exist_ok=True)
        (tmp_path / label / name).write_bytes(png(shade))
    (tmp_path / ".DS_Store").write_bytes(b"x")
    return tmp_path


def test_labels_are_the_folders_and_the_order_is_fixed(pets: Path) -> None:
    rows = image_folder(pets)
    assert [(row["image"].name, row["label"]) for row in rows] == [
        ("a.PNG", "cat"),
        ("c.png", "cat"),
        ("b.png", "dog"),
    ]
    assert Preprocess(size=2)([row["image"] for row in rows]).shape == (3, 3, 2, 2)


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv"])
def test_metadata_joins_by_file_name(pets: Path, name: str) -> None:
    captions = {"dog/b.png": "a dog", "cat/a.PNG": "a cat", "cat/c.png": "the other cat"}
    if name.endswith("csv"):
        (pets / name).write_text(
            "file_name,caption\n" + "".join(f"{key},{value}\n" for key, value in captions.items())
        )
    else:
        (pets / name).write_text(
            "".join(
                json.dumps({"file_name": key, "caption": value}) + "\n"
                for key, value in captions.items()
            )
        )
    assert [row["caption"] for row in image_folder(pets)] == ["a cat", "the other cat", "a dog"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            ['{"file_name": "dog/x.png"}'],
            "row 1: file_name 'dog/x.png': expected the path of an image below",
        ),
        (['{"caption": "a"}'], "row 1: file_name None"),
        (['{"file_name": "dog/b.png"}'] * 2, "row 2: file_name 'dog/b.png' is named twice"),
        (['{"file_name": "dog/b.png"}'], "2 images have no row, 'cat/a.PNG' the first"),
        (["{"], "metadata.jsonl, row 1: not a JSON object"),
    ],
)
def test_wrong_metadata(pets: Path, lines: list[str], message: str) -> None:
    (pets / "metadata.jsonl").write_text("\n".join(lines))
    with pytest.raises(TaskError, match=message):
        image_folder(pets)


def test_wrong_folders(pets: Path, tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="expected a folder of images, found nothing"):
        image_folder(tmp_path / "none")
    with pytest.raises(TaskError, match="expected a folder of images, found a file"):
        image_folder(pets / "dog" / "b.png")
    (tmp_path / "empty").mkdir()
    with pytest.raises(TaskError, match="no images in it"):
        image_folder(tmp_path / "empty")
    (pets / "dog" / "notes.txt").write_text("x")
    with pytest.raises(
        TaskError, match=r"notes.txt: expected an image .*, found '.txt'; move it elsewhere"
    ):
        image_folder(pets)


def write(path: Path, column: list[Any], kind: Any = None) -> Path:
    import pyarrow.parquet

    table = pyarrow.table({"image": pyarrow.array(column, type=kind), "label": ["x"] * len(column)})
    pyarrow.parquet.write_table(table, path)
    return path


def test_hugging_faces_pairs_bytes_and_paths(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(70))
    pairs = [{"bytes": png(70), "path": "gone.png"}, {"bytes": None, "path": "a.png"}]
    for column in (pairs, [png(70)], ["a.png"]):
        rows = list(parquet_images(write(tmp_path / "t.parquet", column)))
        assert all(np.asarray(load_image(row["image"])).max() == 70 for row in rows)
        assert rows[0]["label"] == "x"


def test_what_datasets_writes_is_read(tmp_path: Path) -> None:
    import datasets

    pairs = {"image": [{"bytes": png(50), "path": None}]}
    table = datasets.Dataset.from_dict(
        pairs, features=datasets.Features({"image": datasets.Image()})
    )
    table.to_parquet(str(tmp_path / "h.parquet"))
    [row] = parquet_images(tmp_path / "h.parquet")
    assert np.asarray(load_image(row["image"])).max() == 50


def test_an_empty_cell_is_wrong_in_its_row_only(tmp_path: Path) -> None:
    path = write(
        tmp_path / "t.parquet",
        [{"bytes": png(1), "path": None}, None, {"bytes": b"", "path": None}],
    )
    _, wrong = Preprocess(size=2).rows(
        [row["image"] for row in parquet_images(path)], where="t.parquet"
    )
    assert [str(error).split(";")[0] for error in wrong.values()] == [
        "t.parquet, row 2: expected bytes or a path, found neither (columns bytes, path)",
        "t.parquet, row 3: expected an encoded image, found 0 bytes",
    ]


def test_wrong_parquet(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="no such data file"):
        list(parquet_images(tmp_path / "none.parquet"))
    (tmp_path / "no.parquet").write_bytes(b"no")
    with pytest.raises(TaskError, match="not readable"):
        list(parquet_images(tmp_path / "no.parquet"))
    path = write(tmp_path / "t.parquet", [1, 2])
    with pytest.raises(
        TaskError,
        match=(
            "column 'image' is int64; expected struct<bytes: binary, path: string>, binary or "
            "string"
        ),
    ):
        list(parquet_images(path))
    with pytest.raises(TaskError, match="no column 'photo'; it has image, label"):
        list(parquet_images(path, column="photo"))
