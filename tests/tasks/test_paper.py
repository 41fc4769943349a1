"""The paper's datasets, each on a few made-up rows in the schema of its hub.

They are loaded, split, labelled, boxed and scored.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from pidep.errors import ImageError
from pidep.inputs.locations import text_to_box
from pidep.inputs.row import Row, text_of
from pidep.tasks.data import (
    UNLABELLED,
    TaskData,
    data_digest,
    few_shot,
    hold_out,
    load_data,
    load_texts,
)
from pidep.tasks.hub import with_labels
from pidep.tasks.metrics import score, score_texts
from pidep.tasks.task import Task, load_task
from tests.tasks.doc_table import ORDER, PAGE, TABLE, table
from tests.tasks.paper_rows import BOXES, CLASSES, LANGUAGE, VISION, made

pytestmark = pytest.mark.usefixtures("places")

PAPER = sorted(
    path.stem for path in (Path(load_task.__code__.co_filename).parent / "paper").glob("*.yaml")
)


def test_all_twenty_are_there_and_say_where_they_are_from() -> None:
    assert len(PAPER) == 20
    for name in PAPER:
        task = load_task(f"paper/{name}")
        assert task.name == name
        assert task.licence
        assert re.search(r"columns.*(card|viewer|script)", task.source)
        assert task.data.dataset is not None
        assert task.data.test_split is not None


def test_the_page_lists_them() -> None:
    found = TABLE.search(PAGE.read_text(encoding="utf-8"))
    assert found is not None
    assert found[1] == table(), "run: python -m tests.tasks.doc_table"
    assert sorted(ORDER) == PAPER


@pytest.mark.parametrize("name", PAPER)
def test_made_rows_of_its_schema_are_read_and_scored(name: str, tmp_path: Path) -> None:
    task = made(name, tmp_path)
    data = load_data(task)
    for split, first in ((data.train, 0), (data.test, 100)):
        check_rows(task, split, first)
    if task.target is None:
        labels = data.test.labels
        assert set(labels) == set(range(len(with_labels(task).labels)))
        assert score(task.metric, labels, labels) == 1.0
        assert score(task.metric, labels, [0] * len(labels)) < 1.0
    else:
        assert set(data.test.labels) == {UNLABELLED}
        best = [references[0] for references in data.test.targets]
        top = score_texts(task.metric, data.test.targets, best)
        assert top > score_texts(task.metric, data.test.targets, ["nothing of it"] * len(best))
        assert top == pytest.approx(1.0) or task.metric == "cider"


def check_rows(task: Task, split: Any, first: int) -> None:
    if task.name in VISION:
        assert len(split.rows) == 2 * len(CLASSES[task.name])
        assert {text_of(row) for row in split.rows} == {""}
    if task.image is not None:
        assert all(
            isinstance(row, Row) and isinstance(row.image, Path) and row.image.is_file()
            for row in split.rows
        )
    if task.name in LANGUAGE:
        assert str(first) in split.rows[0]
        assert "{" not in split.rows[0]
    if task.name in BOXES:
        assert [text_of(row) for row in split.rows[:2]] == [
            f'which region does the text "{text} {first}" describe?'
            for text in ("thing", "the other thing")
        ]
        assert len(split.rows) == 8
        for (target,) in split.targets:
            assert text_to_box(target, size=(12, 10)) == pytest.approx((3, 2.5, 9, 7.5), abs=0.02)
    if task.name == "coco_captions":
        assert split.targets[0] == (f"A dog number {first} on grass.", f"One dog, number {first}")
    if task.name == "vqav2":
        assert split.targets[0] == ("2",) * 7 + ("two", "3", "many")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("food101", "a photo of apple pie, a type of food"),
        ("caltech101", "a photo of a side of a car"),
        ("caltech101", "a photo of a electric guitar"),
        ("dtd", "a photo of a polka-dotted texture"),
        ("eurosat", "a satellite photo of sea or lake"),
        ("oxford_pets", "a photo of a american pit bull terrier, a type of pet"),
        ("stanford_cars", "a photo of a Acura RL Sedan 2012"),
    ],
)
def test_class_names_become_phrases(name: str, expected: str, tmp_path: Path) -> None:
    task = with_labels(made(name, tmp_path))
    assert list(task.labels) == CLASSES[name]
    assert expected in task.labels.values()
    assert with_labels(task) is task
    assert Task.model_validate(task.model_dump(mode="json")) == task  # as a run folder keeps it


@pytest.mark.slow
@pytest.mark.parametrize("name", ["food101", "snli_ve", "refcoco", "coco_captions", "vqav2"])
def test_an_encoder_decoder_tunes_on_made_rows_of_it(name: str, tmp_path: Path) -> None:
    from pidep.experts.folder import read_expert
    from pidep.tuning.settings import TuneSettings
    from pidep.tuning.tune import tune
    from tests.backbones.tiny_models import loaded

    task = made(name, tmp_path)
    path = tmp_path / "task.yaml"
    path.write_text(yaml.safe_dump(task.model_dump(mode="json"), sort_keys=False))
    config = TuneSettings(
        task=str(path),
        backbone="given",
        steps=3,
        batch_size=4,
        rank=2,
        top_k=0,
        eval_every=3,
        max_answer_length=4,
    )
    result = tune(config, tmp_path / "run", backbone=loaded("Florence-2"))
    assert result.metric == task.metric
    assert 0 <= result.metrics["own_expert"] <= (10 if task.metric == "cider" else 1)
    assert read_expert(tmp_path / "run" / "expert").label_texts == tuple(
        with_labels(task).labels.values()
    )


def test_shots_and_held_out_rows_of_texts(tmp_path: Path) -> None:
    data = load_data(made("refcoco", tmp_path))
    chosen = few_shot(data.train, shots=3, seed=0)
    assert len(chosen.rows) == len(chosen.targets) == 3
    assert hold_out(data.train, fraction=0.2, seed=0) == (data.train, None)
    other = TaskData(data.train.take(range(8)), data.test)
    assert data_digest(other.train) == data_digest(data.train)
    other.train.targets[0] = ("<loc_1><loc_1><loc_2><loc_2>",)
    assert data_digest(other.train) != data_digest(data.train)


def test_a_target_without_labels_has_no_answers_to_train_on(tmp_path: Path) -> None:
    data = load_texts(made("vqav2", tmp_path))
    assert data.train.targets == []
    assert data.test.targets[0][0] == "2"


def test_an_image_is_kept_once_as_a_file(tmp_path: Path) -> None:
    load_data(made("snli_ve", tmp_path))  # two or three statements about one image
    kept = [path for path in (tmp_path / "cache" / "hub-images").rglob("*") if path.is_file()]
    assert len(kept) == 2 + 3
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in kept)


def test_images_that_are_not_there_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = made("refcoco", tmp_path)
    task = task.model_copy(update={"data": task.data.model_copy(update={"images": None})})
    with pytest.raises(
        ImageError,
        match=(
            r"train\[train\], row 1: image_path '.*cache/images/coco/train2014/COCO.*': expected "
            r"an image file"
        ),
    ):
        load_data(task)
    monkeypatch.setenv("PIDEP_IMAGES", str(tmp_path / "images"))
    assert len(load_data(task).train.rows) == 8
