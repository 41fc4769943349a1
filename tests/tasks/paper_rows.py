"""Made-up rows in the schema of each of the paper's data sets."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image

from pidep.tasks.task import Task, load_task

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
