"""Tasks with images, and with candidates in each row.

Their sources, their faults, and no picture on both sides.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pidep.errors import ImageError, TaskError
from pidep.inputs.row import Row, as_row
from pidep.tasks.data import data_digest, few_shot, load_data, load_texts
from pidep.tasks.task import Task, load_task
from tests.conftest import png

LABELS = {"dark": "a dark picture", "light": "a light picture"}


def task(**changes: Any) -> Task:
    return Task.model_validate(
        {"name": "shade", "input": "", "image": "image", "labels": LABELS, **changes}
    )


def pictures(folder: Path, count: int) -> list[dict[str, str]]:
    (folder / "images").mkdir(exist_ok=True)
    rows = []
    for number in range(count):
        (folder / "images" / f"{number}.png").write_bytes(png(number))
        rows.append(
            {
                "image": f"images/{number}.png",
                "label": ("dark", "light")[number % 2],
                "name": f"picture {number}",
            }
        )
    return rows


def jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_paths_are_relative_to_the_data_and_the_split_sees_pictures_alone(tmp_path: Path) -> None:
    rows = pictures(tmp_path, 40)
    data = load_data(task(data={"path": jsonl(tmp_path / "rows.jsonl", rows)}))
    assert len(data.train.rows) + len(data.test.rows) == 40
    assert min(len(data.train.rows), len(data.test.rows)) > 3
    first = as_row(data.train.rows[0])
    assert isinstance(first.image, Path)
    assert first.image.is_file()
    assert first.where.startswith(f"{tmp_path / 'rows.jsonl'}, row ")
    # The same pictures under other names and with other texts are on the same sides.
    for row in rows:
        name = Path(row["image"]).stem
        (tmp_path / "images" / f"copy-{name}.bmp").write_bytes(as_bmp(tmp_path / row["image"]))
        row["image"] = f"images/copy-{name}.bmp"
    again = load_data(
        task(input="what is {name}", data={"path": jsonl(tmp_path / "again.jsonl", rows)})
    )
    assert again.test.labels == data.test.labels
    assert [as_row(row).text for row in again.test.rows] != [""] * len(again.test.rows)


def as_bmp(path: Path) -> bytes:
    out = io.BytesIO()
    Image.open(path).save(out, "BMP")
    return out.getvalue()


def test_every_source_of_images_gives_the_same_rows(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    rows = pictures(tmp_path, 20)
    for row in rows:
        folder = tmp_path / "folder" / row["label"]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{Path(row['image']).stem.zfill(2)}.png").write_bytes(
            (tmp_path / row["image"]).read_bytes()
        )
    table = [
        {
            "image": {"bytes": (tmp_path / row["image"]).read_bytes(), "path": None},
            "label": row["label"],
        }
        for row in rows
    ]
    parquet.write_table(pyarrow.Table.from_pylist(table), tmp_path / "rows.parquet")
    loaded = [
        load_data(task(data={"path": path}))
        for path in (
            jsonl(tmp_path / "rows.jsonl", rows),
            tmp_path / "rows.parquet",
            tmp_path / "folder",
        )
    ]
    assert data_digest(loaded[0].test) == data_digest(loaded[1].test)
    assert sorted(loaded[2].test.labels) == sorted(
        loaded[0].test.labels
    )  # a folder has another order
    assert data_digest(
        load_texts(task(data={"path": tmp_path / "rows.parquet"})).test
    ) == data_digest(loaded[1].test)


def test_the_digest_sees_pictures_and_candidates_but_no_paths(tmp_path: Path) -> None:
    def digest(place: str, **changes: Any) -> str:
        (tmp_path / place).mkdir()
        _, rows = choosing(tmp_path / place, images=False)
        if "picture" in changes:
            (tmp_path / place / "images" / "3.png").write_bytes(changes.pop("picture"))
        path = jsonl(tmp_path / place / "rows.jsonl", [rows[0] | changes, *rows[1:]])
        fields = {
            "name": "choose",
            "input": "",
            "image": "image",
            "candidates": "choices",
            "data": {"path": path},
        }
        data = load_data(Task.model_validate(fields))
        return data_digest(data.train) + data_digest(data.test)

    one = digest("one")
    assert digest("two") == one
    assert digest("three", picture=png(777)) != one
    assert digest("four", choices=["picture 0", "picture 1", "picture 3"]) != one


def test_a_training_row_that_is_also_a_test_row_is_dropped(tmp_path: Path) -> None:
    rows = pictures(tmp_path, 12)
    files = {
        "train": jsonl(tmp_path / "train.jsonl", rows),
        "test": jsonl(tmp_path / "test.jsonl", rows[:3]),
    }
    assert len(load_data(task(data={"files": files})).train.rows) == 9
    # Another question about the same picture is another row.
    assert (
        len(
            load_data(
                task(
                    input="{name}",
                    data={
                        "files": {
                            **files,
                            "test": jsonl(tmp_path / "q.jsonl", [{**rows[0], "name": "new"}]),
                        }
                    },
                )
            ).train.rows
        )
        == 12
    )


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (
            {"image": "images/none.png"},
            ImageError,
            "row 2: image .*none.png.: expected an image file, found nothing; check the path",
        ),
        ({"image": None}, TaskError, "row 2: column 'image' is empty \\(null\\)"),
        (
            {"image": 7},
            TaskError,
            "row 2: column 'image': expected a path, bytes or {bytes, path}, found int",
        ),
        ({"label": "grey"}, TaskError, "row 2: label 'grey' is not in the task's set"),
        (
            {"image": "rows.jsonl"},
            ImageError,
            "row 2 .*rows.jsonl.: expected PNG, JPEG.* found something else",
        ),
    ],
)
def test_a_wrong_row_is_named(
    tmp_path: Path, change: dict[str, Any], kind: type[Exception], message: str
) -> None:
    rows: list[dict[str, Any]] = [dict(row) for row in pictures(tmp_path, 12)]
    rows[1] |= change
    with pytest.raises(kind, match=message):
        load_data(task(data={"path": jsonl(tmp_path / "rows.jsonl", rows)}))


def choosing(tmp_path: Path, *, images: bool) -> tuple[Task, list[dict[str, Any]]]:
    made = pictures(tmp_path, 40)
    rows: list[dict[str, Any]] = []
    for number in range(40):
        choices = [made[(number + step) % 40]["image" if images else "name"] for step in range(3)]
        rows.append(
            {
                "text": f"picture {number}",
                "image": made[number]["image"],
                "choices": choices,
                "label": number % 3,
            }
        )
    fields: dict[str, Any] = {
        "name": "choose",
        "candidates": "choices",
        "data": {"path": jsonl(tmp_path / "rows.jsonl", rows)},
    }
    return Task.model_validate(
        fields | ({"candidates_are": "image"} if images else {"input": "", "image": "image"})
    ), rows


@pytest.mark.parametrize("images", [False, True])
def test_rows_choose_among_their_own_candidates(tmp_path: Path, images: bool) -> None:
    found, rows = choosing(tmp_path, images=images)
    data = load_data(found)
    assert len(data.train.rows) + len(data.test.rows) == 40
    row = as_row(data.train.rows[0])
    assert len(row.candidates) == 3
    assert isinstance(row.candidates[0], Row if images else str)
    shots = few_shot(data.train, shots=2, seed=0)
    assert sorted(shots.labels) == [0, 0, 1, 1, 2, 2]
    if images:
        return  # these sources have class numbers only
    by_name = [{**row, "label": row["choices"][row["label"]]} for row in rows]
    again = load_data(
        found.model_copy(
            update={
                "data": found.data.model_copy(
                    update={"path": jsonl(tmp_path / "named.jsonl", by_name)}
                )
            }
        )
    )
    assert again.train.labels == data.train.labels


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"choices": ["one"]}, "row 3: column 'choices': expected a list of at least 2 candidates"),
        ({"choices": "one"}, "row 3: column 'choices': expected a list of at least 2 candidates"),
        ({"choices": ["one", " "]}, "row 3: candidate 1: expected a text"),
        (
            {"label": 3},
            "row 3: label '3': expected the number of a candidate, 0 to 2, or the text of one",
        ),
        ({"label": "something"}, "row 3: label 'something': expected the number"),
    ],
)
def test_wrong_candidates_are_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    found, rows = choosing(tmp_path, images=False)
    jsonl(tmp_path / "rows.jsonl", [*rows[:2], rows[2] | change, *rows[3:]])
    with pytest.raises(TaskError, match=message):
        load_data(found)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ("", "expected one of labels, label_text, candidates and target; found none"),
        (
            "labels: {a: x, b: y}\ncandidates: choices\n",
            "expected one of labels, label_text, candidates and target; found labels and "
            "candidates",
        ),
        (
            "labels: {a: x, b: y}\ninput: ''\n",
            "input '' names no column; expected a template such as '{text}', or an image column",
        ),
        (
            "labels: {a: x, b: y}\nimages: image\n",
            r"unknown key 'images' \(did you mean 'image'\?\)",
        ),
        (
            "candidates: choices\ncandidates_are: sounds\n",
            "candidates_are: Input should be 'text' or 'image'",
        ),
    ],
)
def test_what_a_task_file_says_of_its_answers(tmp_path: Path, fields: str, message: str) -> None:
    (tmp_path / "shade.yaml").write_text(f"name: shade\n{fields}data: {{path: rows.jsonl}}\n")
    with pytest.raises(TaskError, match=rf"shade\.yaml: {message}"):
        load_task(tmp_path / "shade.yaml")


def test_an_image_is_tuned_on_end_to_end(tmp_path: Path, mini: Any) -> None:
    """Dark and light pictures, which a tiny backbone tells apart after a few steps and
    not before.
    """
    from pidep.tuning.settings import TuneSettings
    from pidep.tuning.tune import tune

    rng = np.random.default_rng(0)
    rows = []
    for number in range(80):
        values = rng.integers(0, 100, (64, 64), dtype=np.uint8) + np.uint8(120 * (number % 2))
        Image.fromarray(values).save(tmp_path / f"{number}.png")
        rows.append({"image": f"{number}.png", "label": ("dark", "light")[number % 2]})
    jsonl(tmp_path / "rows.jsonl", rows)
    (tmp_path / "shade.yaml").write_text(
        "name: shade\ninput: ''\nimage: image\nlabels: {dark: bad film, light: good film}\ndata: "
        "{path: rows.jsonl}\n"
    )
    config = TuneSettings(
        task=str(tmp_path / "shade.yaml"),
        backbone="mini",
        steps=40,
        rank=4,
        learning_rate=2e-2,
        sites=["encoder.layer.1.*"],
    )
    result = tune(config, tmp_path / "run", backbone=mini)
    assert result.metrics["own_expert"] > 0.9
    choosing_task, _ = choosing(tmp_path, images=True)
    (tmp_path / "choose.yaml").write_text(
        "name: choose\ncandidates: choices\ncandidates_are: image\ndata: {path: rows.jsonl}\n"
    )
    assert choosing_task.labels == {}
    chosen = tune(
        config.model_copy(update={"task": str(tmp_path / "choose.yaml"), "steps": 3}),
        tmp_path / "choose",
        backbone=mini,
    )
    assert set(chosen.metrics) == {"backbone", "own_expert"}
