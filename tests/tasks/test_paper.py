"""The paper's datasets, each on a few made-up rows in the schema of its hub.

They are loaded, split, labelled, boxed and scored.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from pidep.errors import ImageError, TaskError
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

datasets = pytest.importorskip("datasets")

PAPER = sorted(
    path.stem for path in (Path(load_task.__code__.co_filename).parent / "paper").glob("*.yaml")
)
VISION = [
    "food101",
    "caltech101",
    "dtd",
    "eurosat",
    "fgvc_aircraft",
    "flowers102",
    "oxford_pets",
    "stanford_cars",
]
LANGUAGE = ["mnli", "qqp", "mrpc", "qnli", "rte", "sst2"]
BOXES = ["refcoco", "refcoco_plus", "refcocog"]
CLASSES = {
    "food101": ["apple_pie", "baby_back_ribs", "baklava"],
    "caltech101": [
        *(
            "accordion",
            "airplanes",
            "background_google",
            "car_side",
            "cougar_body",
            "cougar_face",
            "crocodile_head",
        ),
        *("electric_guitar", "faces", "faces_easy", "flamingo_head"),
    ],
    "dtd": ["banded", "blotchy", "polka-dotted"],
    "eurosat": ["Annual Crop", "Forest", "SeaLake"],
    "fgvc_aircraft": ["707-320", "A300B4", "Boeing 717"],
    "flowers102": ["pink primrose", "hard-leaved pocket orchid", "colt's foot"],
    "oxford_pets": ["abyssinian", "american_bulldog", "american_pit_bull_terrier"],
    "stanford_cars": ["AM General Hummer SUV 2000", "Acura RL Sedan 2012"],
    "mnli": ["entailment", "neutral", "contradiction"],
    "qqp": ["not_duplicate", "duplicate"],
    "mrpc": ["not_equivalent", "equivalent"],
    "qnli": ["entailment", "not_entailment"],
    "rte": ["entailment", "not_entailment"],
    "sst2": ["negative", "positive"],
    "snli_ve": ["entailment", "neutral", "contradiction"],
}
TEXT_COLUMNS = {
    "mnli": ("premise", "hypothesis"),
    "qqp": ("question1", "question2"),
    "mrpc": ("sentence1", "sentence2"),
    "qnli": ("question", "sentence"),
    "rte": ("sentence1", "sentence2"),
    "sst2": ("sentence",),
}


def picture(seed: int, size: tuple[int, int] = (12, 10)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*size[::-1], 3), np.uint8))


def encoded(seed: int) -> dict[str, Any]:
    stream = io.BytesIO()
    picture(seed).save(stream, "PNG")
    return {"bytes": stream.getvalue(), "path": None}


def of_classes(
    name: str, columns: dict[str, Any], row: Callable[[int], dict[str, Any]]
) -> tuple[Any, Callable[[int], list[dict[str, Any]]]]:
    """Features with a class column, and rows with two examples of each class."""
    classes = CLASSES[name]
    features = datasets.Features({**columns, "label": datasets.ClassLabel(names=classes)})
    return features, lambda first: [
        {**row(first + number), "label": number % len(classes)}
        for number in range(2 * len(classes))
    ]


def schema(name: str) -> tuple[Any, Callable[[int], list[dict[str, Any]]]]:
    """Features as on the hub, and made-up rows, each beginning with its number."""
    value, image = datasets.Value, datasets.Image()
    if name in VISION:
        more = {
            "oxford_pets": {"image_id": value("string")},
            "eurosat": {"filename": value("string")},
        }.get(name, {})
        return of_classes(
            name,
            {"image": image, **more},
            lambda at: {"image": encoded(at), **dict.fromkeys(more, f"x{at}")},
        )
    if name in LANGUAGE:
        columns = TEXT_COLUMNS[name]
        features = {**dict.fromkeys(columns, value("string")), "idx": value("int32")}
        return of_classes(
            name,
            features,
            lambda at: {**{column: f"{column} {at}" for column in columns}, "idx": at},
        )
    if name == "snli_ve":
        columns = {
            "image": image,
            "filename": value("string"),
            "premise": value("string"),
            "hypothesis": value("string"),
        }
        texts = dict.fromkeys(("filename", "premise"), "-")
        return of_classes(
            name,
            columns,
            lambda at: {"image": encoded(at // 3), **texts, "hypothesis": f"There are {at} dogs."},
        )
    if name in BOXES:
        sentence = {
            "raw": value("string"),
            "sent": value("string"),
            "sent_id": value("int64"),
            "tokens": datasets.List(value("string")),
        }
        features = datasets.Features(
            {
                "file_name": value("string"),
                "image_id": value("int64"),
                "sentences": datasets.List(sentence),
                "raw_anns": value("string"),
                "image_path": value("string"),
                "bbox": datasets.List(value("float64")),
                "captions": datasets.List(value("string")),
            }
        )
        blank: dict[str, Any] = {"file_name": "-", "sentences": [], "raw_anns": "{}"}
        return features, lambda first: [
            {
                **blank,
                "image_id": at,
                "image_path": f"coco/train2014/COCO_train2014_{at:012d}.jpg",
                "bbox": [3.0, 2.5, 9.0, 7.5],
                "captions": [f"thing {at}", f"the other thing {at}"],
            }
            for at in range(first, first + 4)
        ]
    if name == "coco_captions":
        features = datasets.Features(
            {
                "image": image,
                "image_id": value("int64"),
                "text": value("string"),
                "captions": datasets.List(value("string")),
            }
        )
        return features, lambda first: [
            {
                "image": encoded(at),
                "image_id": at,
                "text": "-",
                "captions": [f"A dog number {at} on grass.", f"One dog, number {at}"],
            }
            for at in range(first, first + 4)
        ]
    assert name == "vqav2"
    features = datasets.Features(
        {
            "question_type": value("string"),
            "multiple_choice_answer": value("string"),
            "answers": datasets.List(value("string")),
            "id_image": value("int64"),
            "question_id": value("int64"),
            "question": value("string"),
            "image": image,
        }
    )
    blank = {"question_type": "how many", "multiple_choice_answer": "2", "id_image": 0}
    return features, lambda first: [
        {
            **blank,
            "answers": ["2"] * 7 + ["two", "3", "many"],
            "question_id": at,
            "question": f"How many dogs, {at}?",
            "image": encoded(at),
        }
        for at in range(first, first + 4)
    ]


def write_split(
    folder: Path, config: str, split: str, features: Any, rows: list[dict[str, Any]]
) -> None:
    """A dataset as a hub holds it: Parquet files, and a README that says which file is
    which split.
    """
    (folder / config).mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_list(rows, features=features).to_parquet(
        folder / config / f"{split}-00000-of-00001.parquet"
    )
    splits = sorted({path.name.split("-0000")[0] for path in (folder / config).glob("*.parquet")})
    files = "".join(f"  - split: {each}\n    path: {config}/{each}-*\n" for each in splits)
    (folder / "README.md").write_text(
        f"---\nconfigs:\n- config_name: {config}\n  data_files:\n{files}---\n"
    )


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cache folders of this test alone."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hf"))
    monkeypatch.setenv("PIDEP_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("PIDEP_IMAGES", raising=False)


def made(name: str, folder: Path) -> Task:
    """The paper's task over a folder of made-up rows instead of the hub."""
    task = load_task(f"paper/{name}")
    features, rows = schema(name)
    config = task.data.config or "default"
    assert task.data.test_split is not None
    write_split(folder / "train", config, task.data.train_split, features, rows(0))
    apart = task.data.test_dataset is not None
    write_split(
        folder / ("test" if apart else "train"), config, task.data.test_split, features, rows(100)
    )
    update = {
        "dataset": str(folder / "train"),
        "test_dataset": str(folder / "test") if apart else None,
    }
    if name in BOXES:
        for at in (*range(4), *range(100, 104)):
            path = folder / "images" / f"coco/train2014/COCO_train2014_{at:012d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture(at).save(path, "JPEG")
        update["images"] = folder / "images"  # type: ignore[assignment]
    return task.model_copy(update={"data": task.data.model_copy(update=update)})


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


def test_rows_without_a_class_have_no_label(tmp_path: Path) -> None:
    features, _ = schema("sst2")
    write_split(
        tmp_path / "x", "sst2", "train", features, [{"sentence": "good", "idx": 0, "label": -1}]
    )
    task = load_task("paper/sst2")
    task = task.model_copy(
        update={
            "data": task.data.model_copy(
                update={"dataset": str(tmp_path / "x"), "test_split": None}
            )
        }
    )
    with pytest.raises(TaskError, match=r"x\[train\], row 1: column 'label' is empty"):
        load_data(task)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"label": "image"},
            r"label_text: expected class names in column 'image' of .*, found Image; write the "
            r"labels under labels",
        ),
        (
            {"label": "lable"},
            r"label_text: expected class names in column 'lable' of .*, found no such column",
        ),
        (
            {"label_names": {"apple_pye": "pie"}},
            r"label_names: 'apple_pye' is no class of .* \(did you mean 'apple_pie'\?\)",
        ),
    ],
)
def test_class_names_that_are_not_there(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(TaskError, match=message):
        load_data(made("food101", tmp_path).model_copy(update=changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"target": "{captions} {answers}"},
            r"names several lists, captions and answers; expected one at most",
        ),
        (
            {"target": "{captions[text]}"},
            r"the target template .* does not fit it \(.*\); use \{column\} or \{column\[key\]\}",
        ),
        ({"target": "{caption}"}, r"no column 'caption'"),
        ({"data": {"each": "image_id"}}, r"row 1: column 'image_id': expected a list, found '7'"),
    ],
)
def test_targets_that_do_not_fit(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(
        '{"question": "what", "image_id": 7, "captions": ["a", "b"], "answers": ["c"]}\n' * 3
    )
    values = {
        "name": "t",
        "input": "{question}",
        "target": "{captions}",
        "metric": "cider",
        "data": {"path": tmp_path / "rows.jsonl"},
    }
    data = {**values["data"], **changes.pop("data", {})}  # type: ignore[dict-item]
    with pytest.raises(TaskError, match=message):
        load_data(Task.model_validate({**values, **changes, "data": data}))


def test_a_target_may_take_one_key_of_every_answer(tmp_path: Path) -> None:
    rows = '{"question": "what %d", "answers": [{"answer": "a dog"}, {"answer": "dog"}]}\n'
    (tmp_path / "rows.jsonl").write_text("".join(rows % number for number in range(20)))
    task = Task.model_validate(
        {
            "name": "t",
            "input": "{question}",
            "target": "{answers[answer]}",
            "metric": "vqa_score",
            "data": {"path": tmp_path / "rows.jsonl"},
        }
    )
    assert load_data(task).train.targets[0] == ("a dog", "dog")


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ([1, 2, 3], r"box: expected four numbers, xyxy, found '\[1, 2, 3\]'"),
        (["a", 1, 2, 3], r"box: expected four numbers, xyxy"),
        ([5.0, 2.0, 4.0, 9.0], r"box: expected left ≤ right and top ≤ bottom"),
        (
            [0.0, 0.0, 40.0, 9.0],
            r"box: box .* lies outside its image of 12 × 10; it belongs to another image",
        ),
    ],
)
def test_invalid_boxes(box: list[Any], message: str, tmp_path: Path) -> None:
    picture(0).save(tmp_path / "0.png")
    task = made_boxes(tmp_path, box, box_format="xyxy")
    with pytest.raises(TaskError, match=rf"rows\.jsonl, row 1: {message}"):
        load_data(task)


def test_boxes_with_width_and_height(tmp_path: Path) -> None:
    for number in range(10):
        picture(number).save(tmp_path / f"{number}.png")
    data = load_data(made_boxes(tmp_path, [3, 2, 6, 4], box_format="xywh"))
    assert data.train.targets[0] == ("<loc_250><loc_200><loc_750><loc_600>",)


def made_boxes(folder: Path, box: list[Any], *, box_format: str) -> Task:
    import json

    rows = [{"image": path.name, "bbox": box} for path in sorted(folder.glob("*.png"))]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {
        "name": "t",
        "input": "the thing",
        "image": "image",
        "target": "{bbox}",
        "target_is": "box",
        "box_format": box_format,
    }
    return Task.model_validate(
        {**values, "metric": "acc@0.5", "data": {"path": folder / "rows.jsonl"}}
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            "labels: {a: b, c: d}\ntarget: '{x}'",
            r"expected one of labels, label_text, candidates and target; found labels and target$",
        ),
        ("", r"expected one of labels, label_text, candidates and target; found none$"),
        (
            "label_text: a photo",
            r"label_text 'a photo': expected a template with \{label\} and nothing else in "
            r"brackets$",
        ),
        (
            "label_text: 'a {label} {x}'",
            r"label_text 'a \{label\} \{x\}': expected a template with",
        ),
        (
            "target: '{x}'\nmetric: macro_f1",
            r"metric 'macro_f1': answers that are texts have accuracy, vqa_score, bleu4, cider",
        ),
        (
            "labels: {a: b, c: d}\nmetric: cider",
            r"metric 'cider': answers that are labels have accuracy, macro_f1$",
        ),
        (
            "target: '{x}'\ntarget_is: box\nmetric: acc@0.5",
            r"target_is box: expected a target of one column, such as '\{bbox\}', and an image$",
        ),
        (
            "image: i\ntarget: '{x}'\ntarget_is: box",
            r"metric 'accuracy': answers that are boxes have acc@0\.5$",
        ),
        (
            "target: '{x}'\nmetric: rouge",
            r"metric: Input should be 'accuracy', 'macro_f1', 'acc@0\.5', .*, found 'rouge'$",
        ),
    ],
)
def test_tasks_whose_answers_do_not_go_together(changes: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "task.yaml").write_text(f"name: t\ndata: {{path: rows.jsonl}}\n{changes}\n")
    with pytest.raises(TaskError, match=message):
        load_task(tmp_path / "task.yaml")


def test_a_test_dataset_goes_with_a_split(tmp_path: Path) -> None:
    (tmp_path / "task.yaml").write_text(
        "name: t\nlabels: {a: b, c: d}\ndata: {dataset: x, test_dataset: y}\n"
    )
    with pytest.raises(TaskError, match=r"data: test_dataset goes with dataset and test_split"):
        load_task(tmp_path / "task.yaml")


def test_an_unknown_paper_task() -> None:
    with pytest.raises(
        TaskError, match=r"paper/NAME for data on a hub\) \(did you mean 'paper/food101'\?\)"
    ):
        load_task("paper/food102")
